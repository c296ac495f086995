package edgegen;

/** Figures of a session's last run. */
public final class Report {
  public final String program;
  public final String variant;

  /** Of networks. */
  public final int evaluations;

  /** In all. */
  public final double seconds;

  /** Spent in networks. */
  public final double networkSeconds;

  Report(byte[] program, byte[] variant, int evaluations, double seconds, double networkSeconds) {
    this.program = Native.string(program);
    this.variant = Native.string(variant);
    this.evaluations = evaluations;
    this.seconds = seconds;
    this.networkSeconds = networkSeconds;
  }
}
