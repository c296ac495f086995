package edgegen;

/** What a session runs on. */
public final class SessionInfo {
  /** The name of the variant that was taken. */
  public final String variant;

  /** Such as "ONNX Runtime 1.22.0, libonnxruntime.so". */
  public final String engine;

  /** Most samples per run. */
  public final int batch;

  SessionInfo(byte[] variant, byte[] engine, int batch) {
    this.variant = Native.string(variant);
    this.engine = Native.string(engine);
    this.batch = batch;
  }
}
