package edgegen;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** What is inside a bundle. */
public final class ModelInfo {
  public final String name;
  public final String summary;

  /** Notes on licences of weights and data. */
  public final String licence;

  /** What wrote the bundle. */
  public final String producer;

  /** Of the file. */
  public final long bytes;

  /** Whether the weights came from a pickle that the builder chose to trust. */
  public final boolean trustedPickle;

  /** The range of a sample's values. */
  public final double low;

  public final double high;

  /** Whether a sample is an image [channels, height, width]. */
  public final boolean image;

  /** Of one sample. */
  public final List<Integer> shape;

  /** Numbers in one sample. */
  public final long elements;

  public final List<Condition> conditions;

  /** The first is the default. */
  public final List<Program> programs;

  /** The best first. */
  public final List<Variant> variants;

  ModelInfo(
      byte[] name, byte[] summary, byte[] licence, byte[] producer, long bytes, boolean trustedPickle, double low, double high, boolean image,
      int[] shape, long elements, Condition[] conditions, Program[] programs, Variant[] variants) {
    this.name = Native.string(name);
    this.summary = Native.string(summary);
    this.licence = Native.string(licence);
    this.producer = Native.string(producer);
    this.bytes = bytes;
    this.trustedPickle = trustedPickle;
    this.low = low;
    this.high = high;
    this.image = image;
    this.shape = list(shape);
    this.elements = elements;
    this.conditions = Collections.unmodifiableList(Arrays.asList(conditions));
    this.programs = Collections.unmodifiableList(Arrays.asList(programs));
    this.variants = Collections.unmodifiableList(Arrays.asList(variants));
  }

  /** The condition of a name, or null. */
  Condition condition(String name) {
    for (Condition condition : conditions) {
      if (condition.name.equals(name)) return condition;
    }
    return null;
  }

  /** Known answers of a variant. */
  int golden(String variant) {
    for (Variant v : variants) {
      if (v.name.equals(variant)) return v.golden;
    }
    return 0;
  }

  static List<Integer> list(int[] sizes) {
    final List<Integer> made = new ArrayList<>();
    for (int size : sizes) made.add(size);
    return Collections.unmodifiableList(made);
  }
}
