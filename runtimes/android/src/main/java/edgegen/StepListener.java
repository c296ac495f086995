package edgegen;

/** Is told of each step of a run, on the thread of the run. */
public interface StepListener {
  /**
   * A step is done.
   *
   * @param done steps done so far
   * @param total steps in all
   * @param state the sample so far, an array of its own
   * @return true to go on; false ends the run with {@link EdgegenException#CANCELLED}. What it throws ends the run too, and comes out of it.
   */
  boolean onStep(int done, int total, float[] state);
}
