package edgegen;

/** Element types of tensors, in the order of edgegen.h. */
public enum Dtype {
  FLOAT32,
  FLOAT64,
  FLOAT16,
  INT64,
  INT32,
  INT8,
  UINT8,
  BOOL;

  /** The number of this type in edgegen.h. */
  int code() {
    return ordinal() + 1;
  }

  static Dtype of(int code) {
    return values()[code - 1];
  }
}
