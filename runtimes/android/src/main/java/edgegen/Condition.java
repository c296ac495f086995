package edgegen;

import java.util.List;

/** A tensor that the caller chooses, such as a class or a goal. */
public final class Condition {
  public final String name;
  public final String summary;
  public final Dtype dtype;

  /** Without the batch; empty for a single number. */
  public final List<Integer> shape;

  /** Inclusive; null if there is none. */
  public final Double minimum;

  /** Inclusive; null if there is none. */
  public final Double maximum;

  /** What it is if it is not set; null if it must be set. */
  public final Double defaultValue;

  /** What guidance feeds its unconditional branch; allowed although out of range. null if there is none. */
  public final Double nullValue;

  Condition(byte[] name, byte[] summary, int dtype, int[] shape, int has, double minimum, double maximum, double defaultValue, double nullValue) {
    this.name = Native.string(name);
    this.summary = Native.string(summary);
    this.dtype = Dtype.of(dtype);
    this.shape = ModelInfo.list(shape);
    this.minimum = (has & 1) != 0 ? (Double) minimum : null;
    this.maximum = (has & 2) != 0 ? (Double) maximum : null;
    this.defaultValue = (has & 4) != 0 ? (Double) defaultValue : null;
    this.nullValue = (has & 8) != 0 ? (Double) nullValue : null;
  }

  /** Numbers in one value. */
  long elements() {
    long count = 1;
    for (int size : shape) count *= size;
    return count;
  }
}
