package edgegen;

/**
 * A pointer of the library's. Calls enter it and leave it; it is released once it is closed and no call is inside, so that closing is safe at any
 * time and never waits.
 */
abstract class Handle {
  private final String what;
  private final boolean shared;

  /** What the library reads as long as the pointer lives; here so that the garbage collector does not take it. */
  @SuppressWarnings("unused")
  private final Object reads;

  private final long pointer;
  private int inside;
  private boolean closed;

  /** shared: whether any number of threads may be inside at once. */
  Handle(String what, boolean shared, long pointer, Object reads) {
    this.what = what;
    this.shared = shared;
    this.pointer = pointer;
    this.reads = reads;
  }

  /** Give the pointer back. */
  abstract void release(long pointer);

  /** Make the call that is inside end soon. */
  void stop(long pointer) {}

  final synchronized long enter() {
    if (closed) throw new IllegalStateException("this " + what + " is closed");
    if (inside > 0 && !shared) {
      throw new EdgegenException(EdgegenException.BUSY, "this " + what + " is in a call; one thread at a time may use it, and a step listener not at all");
    }
    inside++;
    return pointer;
  }

  final synchronized void leave() {
    inside--;
    if (closed && inside == 0) release(pointer);
  }

  final synchronized void interrupt() {
    if (inside > 0) stop(pointer);
  }

  final synchronized void close() {
    if (closed) return;
    closed = true;
    interrupt();
    if (inside == 0) release(pointer);
  }
}
