package edgegen;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;

/**
 * A model's networks on this device. Made by {@link Model#createSession()}.
 *
 * <p>A session is for one thread at a time; a second one gets {@link EdgegenException#BUSY}. {@link #cancel} and {@link #close} may be called from
 * any thread and at any time. A closed session throws IllegalStateException when it is used.
 */
public final class Session implements AutoCloseable {
  private final ModelInfo model;
  private final int batch;
  private final Handle handle;
  private int streamBatch; // of the stream that has begun, else 0

  Session(Handle owner, ModelInfo model, int batch, long pointer) {
    this.model = model;
    this.batch = batch;
    handle =
        new Handle("session", false, pointer, owner) {
          @Override
          void release(long session) {
            Native.destroy(session);
          }

          @Override
          void stop(long session) {
            Native.cancel(session);
          }
        };
  }

  /** What it runs on. */
  public SessionInfo info() {
    final long session = handle.enter();
    try {
      return Native.describeSession(session);
    } finally {
      handle.leave();
    }
  }

  /** Set every element of a condition to a number, which must fit its dtype. Settings are for all runs to come. */
  public void set(String name, double value) {
    final byte[] utf8 = Native.utf8(name);
    final long session = handle.enter();
    try {
      Native.setNumber(session, utf8, value);
    } finally {
      handle.leave();
    }
  }

  /**
   * Set a condition of dtype FLOAT32. This and the methods below: the values are row-major and copied, one value of the condition for all samples or one
   * per sample (then runs have that batch), and the array's type must be the condition's dtype.
   */
  public void set(String name, float[] values) {
    set(name, Dtype.FLOAT32, values, values.length);
  }

  /** Set a condition of dtype FLOAT64. */
  public void set(String name, double[] values) {
    set(name, Dtype.FLOAT64, values, values.length);
  }

  /** Set a condition of dtype INT64. */
  public void set(String name, long[] values) {
    set(name, Dtype.INT64, values, values.length);
  }

  /** Set a condition of dtype INT32. */
  public void set(String name, int[] values) {
    set(name, Dtype.INT32, values, values.length);
  }

  /** Set a condition of dtype FLOAT16, by the bits of its numbers. */
  public void set(String name, short[] values) {
    set(name, Dtype.FLOAT16, values, values.length);
  }

  /** Set a condition of dtype INT8, UINT8 or BOOL. */
  public void set(String name, byte[] values) {
    final Condition condition = model.condition(name);
    final boolean unsigned = condition != null && (condition.dtype == Dtype.UINT8 || condition.dtype == Dtype.BOOL);
    set(name, unsigned ? condition.dtype : Dtype.INT8, values, values.length);
  }

  private void set(String name, Dtype dtype, Object values, int count) {
    final byte[] utf8 = Native.utf8(name);
    final long session = handle.enter();
    try {
      Native.set(session, utf8, dtype.code(), values, shape(model.condition(name), count));
    } finally {
      handle.leave();
    }
  }

  /** The shape of so many numbers for a condition: its own, or with the samples in front; one that the library refuses if neither fits. */
  private static long[] shape(Condition condition, int count) {
    final long elements = condition == null ? 0 : condition.elements();
    if (elements == 0 || count % elements != 0) return new long[] {count};
    final int samples = count == elements ? 0 : 1;
    final long[] shape = new long[samples + condition.shape.size()];
    if (samples > 0) shape[0] = count / elements;
    for (int i = 0; i < condition.shape.size(); i++) shape[samples + i] = condition.shape.get(i);
    return shape;
  }

  /** Back to the default of a condition. */
  public void unset(String name) {
    unset(Native.utf8(Objects.requireNonNull(name, "name")));
  }

  /** Back to the defaults of all conditions. */
  public void unsetAll() {
    unset((byte[]) null);
  }

  private void unset(byte[] name) {
    final long session = handle.enter();
    try {
      Native.unset(session, name);
    } finally {
      handle.leave();
    }
  }

  /** One sample of the default program. */
  public float[] generate(long seed) {
    return generate(new RunOptions().seed(seed));
  }

  /** Samples, [batch, sample shape] row-major. Blocks until done, cancelled or failed; after a failure the session is as before. */
  public float[] generate(RunOptions options) {
    return run(options, false);
  }

  /**
   * The next sample of a stream: one call of a program with states, which continue from the step before. Program, seed, batch and allowNonfinite are
   * fixed by a stream's first step; noise must not be given. A step that fails leaves the stream as it was.
   */
  public float[] streamStep(RunOptions options) {
    return run(options, true);
  }

  private float[] run(RunOptions options, boolean stream) {
    final byte[] program = Native.utf8(options.program);
    final long session = handle.enter();
    try {
      final int samples = stream && streamBatch > 0 ? streamBatch : options.batch;
      final float[] sample = new float[elements(samples)];
      Native.run(
          session, stream, program, options.steps, options.seed, options.batch, options.noise, options.nonfinite, options.listener, sample);
      if (stream) streamBatch = samples;
      return sample;
    } finally {
      handle.leave();
    }
  }

  /** Numbers in so many samples; checked here, before memory is taken for them. */
  private int elements(int samples) {
    if (samples > batch) {
      final String why = "batch: this session was made for at most " + batch + ", found " + samples + "; see SessionOptions.batch";
      throw new EdgegenException(EdgegenException.OUT_OF_RANGE, why);
    }
    if (model.elements > Integer.MAX_VALUE / samples) {
      final String why = "batch: " + samples + " samples of " + model.elements + " numbers do not fit a Java array; make fewer";
      throw new EdgegenException(EdgegenException.OUT_OF_RANGE, why);
    }
    return (int) model.elements * samples;
  }

  /** Begin again: the next streamStep is the first of a new stream. */
  public void streamReset() {
    final long session = handle.enter();
    try {
      Native.resetStream(session);
      streamBatch = 0;
    } finally {
      handle.leave();
    }
  }

  /**
   * Stop the run that is going on, if one is: it ends with {@link EdgegenException#CANCELLED} after the instruction, or the part of a network, that it is
   * in. Returns at once. Does nothing if no run has begun, or if the session is closed; a step listener that returns false cannot come too early.
   */
  public void cancel() {
    handle.interrupt();
  }

  /** Figures of the last run. */
  public Report report() {
    final long session = handle.enter();
    try {
      return Native.report(session);
    } finally {
      handle.leave();
    }
  }

  /** Run the known answers of this session's variant: seed 0, one sample, default conditions. Conditions that were set stay set. */
  public List<Golden> selfTest() {
    final long session = handle.enter();
    try {
      final int count = model.golden(Native.describeSession(session).variant);
      final List<Golden> results = new ArrayList<>();
      for (int i = 0; i < count; i++) results.add(Native.selfTest(session, i));
      return results;
    } finally {
      handle.leave();
    }
  }

  /** Release the session: at once, or when the call that is in it has returned, which this cancels but does not wait for. Closing again does nothing. */
  @Override
  public void close() {
    handle.close();
  }
}
