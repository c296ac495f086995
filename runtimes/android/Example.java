import edgegen.Condition;
import edgegen.Model;
import edgegen.ModelInfo;
import edgegen.Program;
import edgegen.Report;
import edgegen.RunOptions;
import edgegen.Session;
import java.util.Arrays;

/** Says what is in a bundle and generates from it: Example FILE [SEED] [CONDITION=NUMBER ...]. */
public final class Example {
  private Example() {}

  public static void main(String[] words) {
    if (words.length == 0) {
      System.err.println("usage: Example FILE [SEED] [CONDITION=NUMBER ...]");
      System.exit(2);
    }
    final long seed = words.length > 1 ? Long.parseUnsignedLong(words[1]) : 0;
    try (Model model = Model.open(words[0]); Session session = model.createSession()) {
      describe(model.info());
      for (int i = 2; i < words.length; i++) {
        final String[] setting = words[i].split("=", 2);
        session.set(setting[0], Double.parseDouble(setting[1]));
      }
      final float[] sample = session.generate(new RunOptions().seed(seed).onStep(Example::progress));
      final Report report = session.report();
      System.out.printf("%s on %s: %.1f ms, %d evaluations%n", report.program, report.variant, report.seconds * 1e3, report.evaluations);
      System.out.println("the first numbers: " + Arrays.toString(Arrays.copyOf(sample, Math.min(8, sample.length))));
    }
  }

  private static void describe(ModelInfo inside) {
    System.out.printf("%s: %s%nsample: %s from %s to %s%n", inside.name, inside.summary, inside.shape, inside.low, inside.high);
    for (Condition c : inside.conditions) System.out.printf("condition %s: %s%s from %s to %s%n", c.name, c.dtype, c.shape, c.minimum, c.maximum);
    for (Program p : inside.programs) System.out.printf("program %s: %d steps%n", p.name, p.steps);
  }

  private static boolean progress(int done, int total, float[] state) {
    System.out.printf("step %d of %d%n", done, total);
    return true; // false would stop the run
  }
}
