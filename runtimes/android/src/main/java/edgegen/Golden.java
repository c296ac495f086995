package edgegen;

/** A known answer of the bundle, and how near this device came to it. */
public final class Golden {
  public final String program;

  /** Root mean square difference from the expected sample. */
  public final double rmse;

  public final double tolerance;

  /** Whether rmse is at most the tolerance. */
  public final boolean passed;

  Golden(byte[] program, double rmse, double tolerance, boolean passed) {
    this.program = Native.string(program);
    this.rmse = rmse;
    this.tolerance = tolerance;
    this.passed = passed;
  }
}
