package edgegen;

import java.nio.ByteBuffer;
import java.util.Objects;

/**
 * An open bundle.
 *
 * <pre>{@code
 * try (Model model = Model.open("digits.edgegen"); Session session = model.createSession()) {
 *   session.set("label", 3);
 *   float[] image = session.generate(7);
 * }
 * }</pre>
 *
 * Any number of threads may use a model at once; each makes a session of its own. A closed model throws IllegalStateException when it is used; its
 * sessions live on. What the library refuses is an {@link EdgegenException}.
 */
public final class Model implements AutoCloseable {
  private final Handle handle;
  private volatile ModelInfo info; // read when it is first asked for

  private Model(long pointer, ByteBuffer bytes) {
    handle =
        new Handle("model", true, pointer, bytes) {
          @Override
          void release(long model) {
            Native.close(model);
          }
        };
  }

  /** Open a file: read it, check every byte of it, close it. Takes as much memory as the file has bytes, outside the Java heap. */
  public static Model open(String path) {
    return new Model(Native.openFile(Native.utf8(path), false), null);
  }

  /** Open a file without reading it into memory. Nobody may change the file while the model or a session of it is open. */
  public static Model openMapped(String path) {
    return new Model(Native.openFile(Native.utf8(path), true), null);
  }

  /** Open a bundle in memory. The bytes are copied. */
  public static Model open(byte[] bytes) {
    return new Model(Native.openArray(bytes, 0, bytes.length), null);
  }

  /** Open the bundle between the buffer's position and its limit, which stay as they are. The bytes are copied. */
  public static Model open(ByteBuffer bytes) {
    if (bytes.isDirect()) return new Model(Native.openBuffer(bytes, bytes.position(), bytes.remaining(), false), null);
    if (bytes.hasArray()) return new Model(Native.openArray(bytes.array(), bytes.arrayOffset() + bytes.position(), bytes.remaining()), null);
    final byte[] copy = new byte[bytes.remaining()]; // of a buffer that is read-only
    bytes.duplicate().get(copy);
    return open(copy);
  }

  /**
   * Open the bundle between a direct buffer's position and its limit without copying it. Nobody may change the bytes while the model or a session of it
   * is open. Where they do not begin at a multiple of 64 in memory, sessions copy the networks' weights.
   */
  public static Model openInPlace(ByteBuffer bytes) {
    if (!bytes.isDirect()) throw new EdgegenException(EdgegenException.BAD_ARGUMENT, "openInPlace: expected a direct buffer, found one on the heap; use open");
    return new Model(Native.openBuffer(bytes, bytes.position(), bytes.remaining(), true), bytes);
  }

  /** The version of libedgegen, such as "0.1.0". */
  public static String libraryVersion() {
    return Native.string(Native.version());
  }

  /** What is inside. */
  public ModelInfo info() {
    final long model = handle.enter();
    try {
      if (info == null) info = Native.describe(model);
      return info;
    } finally {
      handle.leave();
    }
  }

  /** A JSON document of the bundle: "recipe", "report" or "measured". Floats in it are hexadecimal strings. */
  public String document(String name) {
    final byte[] utf8 = Native.utf8(Objects.requireNonNull(name, "name"));
    final long model = handle.enter();
    try {
      return Native.string(Native.document(model, utf8));
    } finally {
      handle.leave();
    }
  }

  /** A session with the default options. */
  public Session createSession() {
    return createSession(new SessionOptions());
  }

  /** Open the model's networks on this device. Sessions with equal options share the engine and its weights. */
  public Session createSession(SessionOptions options) {
    final byte[] variant = Native.utf8(options.variant);
    final byte[] onnxruntime = Native.utf8(options.onnxruntime);
    final ModelInfo inside = info();
    final long model = handle.enter();
    try {
      return new Session(handle, inside, options.batch, Native.create(model, options.threads, options.batch, variant, onnxruntime));
    } finally {
      handle.leave();
    }
  }

  /** Give the model up; its memory goes when its last session is closed. Closing again does nothing. */
  @Override
  public void close() {
    handle.close();
  }
}
