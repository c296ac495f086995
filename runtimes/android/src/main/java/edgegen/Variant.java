package edgegen;

/** A compiled choice, such as float32 or int8. */
public final class Variant {
  public final String name;

  /** Such as "onnxruntime". */
  public final String engine;

  /** Execution providers before the CPU, separated by commas; "" for none. */
  public final String providers;

  /** What the builder measured for the default program, as written; null if it did not. */
  public final String milliseconds;

  /** Of its networks and weights. */
  public final long bytes;

  /** Known answers, for {@link Session#selfTest}. */
  public final int golden;

  Variant(byte[] name, byte[] engine, byte[] providers, byte[] milliseconds, long bytes, int golden) {
    this.name = Native.string(name);
    this.engine = Native.string(engine);
    this.providers = Native.string(providers);
    this.milliseconds = Native.string(milliseconds);
    this.bytes = bytes;
    this.golden = golden;
  }
}
