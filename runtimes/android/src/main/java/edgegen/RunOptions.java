package edgegen;

/** What a run shall make: {@code new RunOptions().seed(7).steps(4)}. */
public final class RunOptions {
  long seed;
  String program;
  int steps;
  int batch = 1;
  float[] noise;
  boolean nonfinite;
  StepListener listener;

  /** All 64 bits count: -1 is the seed 2^64 - 1. Equal seeds give equal noise on every device; sample k does not depend on the batch. 0 is the default. */
  public RunOptions seed(long seed) {
    this.seed = seed;
    return this;
  }

  /** A program by name; null, the default, leaves the choice to steps, and without those to the bundle. */
  public RunOptions program(String program) {
    this.program = program;
    return this;
  }

  /** The program of so many steps; 0, the default, for no choice. */
  public RunOptions steps(int steps) {
    this.steps = EdgegenException.inRange("steps", steps, 0, 65536);
    return this;
  }

  /** Samples, at most the session's batch; 1 is the default. */
  public RunOptions batch(int batch) {
    this.batch = EdgegenException.inRange("batch", batch, 1, 65536);
    return this;
  }

  /** Standard normals [batch, sample shape] to start from instead of the seed's; null, the default, for the seed's. */
  public RunOptions noise(float[] noise) {
    this.noise = noise;
    return this;
  }

  /** Let NaN and infinity pass through networks and into the sample; false is the default. */
  public RunOptions allowNonfinite(boolean allow) {
    this.nonfinite = allow;
    return this;
  }

  /** Is told of each step; null, the default, for none. */
  public RunOptions onStep(StepListener listener) {
    this.listener = listener;
    return this;
  }
}
