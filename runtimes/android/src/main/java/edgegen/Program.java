package edgegen;

/** A way from noise to a sample. */
public final class Program {
  public final String name;
  public final int steps;

  /** Of networks, in all. */
  public final int evaluations;

  /** Whether it runs by {@link Session#streamStep} instead of {@link Session#generate(RunOptions)}. */
  public final boolean stream;

  private final long conditions;

  Program(byte[] name, int steps, int evaluations, boolean stream, long conditions) {
    this.name = Native.string(name);
    this.steps = steps;
    this.evaluations = evaluations;
    this.stream = stream;
    this.conditions = conditions;
  }

  /** Whether it reads a condition, given by its place in {@link ModelInfo#conditions}. */
  public boolean reads(int condition) {
    return condition >= 0 && condition < Long.SIZE && (conditions >>> condition & 1) != 0;
  }
}
