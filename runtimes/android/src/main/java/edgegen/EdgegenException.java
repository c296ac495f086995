package edgegen;

/** What the library refused or could not do: a status of edgegen.h, and a message that says what was expected, what was found and what to do. */
public final class EdgegenException extends RuntimeException {
  public static final int BAD_ARGUMENT = 100;
  public static final int BAD_SHAPE = 101;
  public static final int BAD_DTYPE = 102;
  public static final int OUT_OF_RANGE = 103;
  public static final int UNKNOWN_NAME = 104;
  public static final int NONFINITE = 105;
  public static final int CANNOT_OPEN = 200;
  public static final int TRUNCATED = 201;
  public static final int NOT_A_BUNDLE = 202;
  public static final int BAD_VERSION = 203;
  public static final int BAD_HEADER = 204;
  public static final int LIMIT = 205;
  public static final int CORRUPT = 206;
  public static final int BAD_MANIFEST = 207;
  public static final int NOT_CANONICAL = 208;
  public static final int BAD_TABLE = 209;
  public static final int INCONSISTENT = 210;
  public static final int BAD_PROGRAM = 211;
  public static final int NO_MEMORY = 300;
  public static final int BACKEND_MISSING = 400;
  public static final int BACKEND_FAILED = 401;
  public static final int NO_VARIANT = 402;
  public static final int BACKEND_TOO_OLD = 404;
  public static final int PROVIDER_MISSING = 405;
  public static final int BAD_STATE = 500;
  public static final int BUSY = 502;
  public static final int CANCELLED = 600;

  private static final long serialVersionUID = 1;

  /** One of the numbers above. 1xx: an argument, 2xx: the file, 3xx: memory, 4xx: the engine, 5xx: not possible now, 6xx: cancelled. */
  public final int status;

  EdgegenException(int status, String message) {
    super(message);
    this.status = status;
  }

  EdgegenException(int status, byte[] message) {
    this(status, Native.string(message));
  }

  /** A number that an option asks for, which must be in a range. */
  static int inRange(String what, int found, int least, int most) {
    if (found < least || found > most) {
      throw new EdgegenException(OUT_OF_RANGE, what + ": expected " + least + " .. " + most + ", found " + found);
    }
    return found;
  }
}
