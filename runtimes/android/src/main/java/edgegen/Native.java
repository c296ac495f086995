package edgegen;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;

/** The functions of edgegen_jni.c, which throw EdgegenException. Texts cross as UTF-8, which the strings of JNI are not. */
final class Native {
  static {
    System.loadLibrary("edgegen_jni");
  }

  private Native() {}

  static native byte[] version();

  static native long openFile(byte[] path, boolean mapped);

  static native long openArray(byte[] bytes, int offset, int size);

  static native long openBuffer(ByteBuffer bytes, int offset, int size, boolean inPlace);

  static native void close(long model);

  static native ModelInfo describe(long model);

  static native byte[] document(long model, byte[] name);

  static native long create(long model, int threads, int batch, byte[] variant, byte[] onnxruntime);

  static native void destroy(long session);

  static native SessionInfo describeSession(long session);

  static native void set(long session, byte[] name, int dtype, Object values, long[] shape);

  static native void setNumber(long session, byte[] name, double value);

  static native void unset(long session, byte[] name);

  static native void run(
      long session, boolean stream, byte[] program, int steps, long seed, int batch, float[] noise, boolean nonfinite, StepListener listener,
      float[] sample);

  static native void resetStream(long session);

  static native void cancel(long session);

  static native Report report(long session);

  static native Golden selfTest(long session, int index);

  /** A text as C reads it: UTF-8 and a NUL; null for null. */
  static byte[] utf8(String text) {
    if (text == null) return null;
    if (text.indexOf('\0') >= 0) {
      throw new EdgegenException(EdgegenException.BAD_ARGUMENT, "expected a text without NUL, found '" + text.replace("\0", "\\0") + "'");
    }
    return (text + '\0').getBytes(StandardCharsets.UTF_8);
  }

  /** The text of UTF-8 bytes; null for null. What is not UTF-8 becomes U+FFFD. */
  static String string(byte[] utf8) {
    return utf8 == null ? null : new String(utf8, StandardCharsets.UTF_8);
  }
}
