package edgegen;

/** How a session is made: {@code new SessionOptions().threads(2).batch(4)}. */
public final class SessionOptions {
  int threads;
  int batch = 1;
  String variant;
  String onnxruntime;

  /** Threads of the engine, at most 1024; 0 for one per core, which is the default. */
  public SessionOptions threads(int threads) {
    this.threads = EdgegenException.inRange("threads", threads, 0, 1024);
    return this;
  }

  /** Most samples per run, 1 .. 65536; 1 is the default. */
  public SessionOptions batch(int batch) {
    this.batch = EdgegenException.inRange("batch", batch, 1, 65536);
    return this;
  }

  /** A variant by name; null, the default, takes the first that this device can run. */
  public SessionOptions variant(String variant) {
    this.variant = variant;
    return this;
  }

  /** The path of libonnxruntime; null, the default, looks where the system does. */
  public SessionOptions onnxruntime(String path) {
    this.onnxruntime = path;
    return this;
  }
}
