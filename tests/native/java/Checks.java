import edgegen.Condition;
import edgegen.EdgegenException;
import edgegen.Golden;
import edgegen.Model;
import edgegen.ModelInfo;
import edgegen.Program;
import edgegen.Report;
import edgegen.RunOptions;
import edgegen.Session;
import edgegen.SessionOptions;
import edgegen.StepListener;
import edgegen.Variant;
import java.io.IOException;
import java.lang.reflect.Array;
import java.lang.reflect.Field;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;

/** The checks of test_java.py: Checks NAME BUNDLE ONNXRUNTIME [ARGUMENTS]. Ends with exit code 0, or throws what is wrong. */
public final class Checks {
  private static String bundle;
  private static String onnxruntime;

  private Checks() {}

  public static void main(String[] words) throws Exception {
    bundle = words[1];
    onnxruntime = words[2];
    try {
      Checks.class.getDeclaredMethod(words[0], String[].class).invoke(null, (Object) Arrays.copyOfRange(words, 3, words.length));
    } catch (InvocationTargetException e) {
      e.getCause().printStackTrace();
      System.exit(1);
    }
  }

  // ---- what checks are made of ----

  private interface Work {
    void run() throws Exception;
  }

  private static void check(boolean holds, String what) {
    if (!holds) throw new AssertionError(what);
  }

  private static <T extends Throwable> T thrown(Class<T> type, Work work) {
    try {
      work.run();
    } catch (Throwable e) {
      if (type.isInstance(e)) return type.cast(e);
      throw new AssertionError("expected " + type.getName() + ", found " + e, e);
    }
    throw new AssertionError("expected " + type.getName() + ", nothing was thrown");
  }

  private static void refused(int status, Work work) {
    final EdgegenException e = thrown(EdgegenException.class, work);
    check(e.status == status, "expected " + status + ", found " + e.status + ": " + e.getMessage());
  }

  private static SessionOptions options() {
    return new SessionOptions().threads(1).onnxruntime(onnxruntime);
  }

  private static void write(String path, List<float[]> samples) throws IOException {
    int count = 0;
    for (float[] sample : samples) count += sample.length;
    final ByteBuffer bytes = ByteBuffer.allocate(4 * count).order(ByteOrder.LITTLE_ENDIAN);
    for (float[] sample : samples) {
      for (float number : sample) bytes.putFloat(number);
    }
    Files.write(Paths.get(path), bytes.array());
  }

  private static Thread start(Work work) {
    final Thread thread =
        new Thread(
            () -> {
              try {
                work.run();
              } catch (Throwable e) {
                e.printStackTrace();
                Runtime.getRuntime().halt(3);
              }
            });
    thread.start();
    return thread;
  }

  // ---- samples ----

  static void samples(String[] words) throws Exception {
    final List<float[]> made = new ArrayList<>();
    final float[] noise = new float[128];
    for (int i = 0; i < noise.length; i++) noise[i] = (i - 64) / 32.0f;
    try (Model model = Model.open(bundle)) {
      try (Session session = model.createSession(options().variant(words[1]).batch(3))) {
        made.add(session.generate(5)); // label 1 is the default
        session.set("label", 3);
        made.add(session.generate(5));
        made.add(session.generate(new RunOptions().seed(-1)));
        made.add(session.generate(new RunOptions().seed(5).steps(2)));
        made.add(session.generate(new RunOptions().seed(5).program(words[2])));
        made.add(session.generate(new RunOptions().seed(6).noise(noise).batch(2)));
        session.set("label", new long[] {0, 1, 3});
        made.add(session.generate(new RunOptions().seed(7).batch(3)));
        session.set("label", new long[] {2});
        made.add(session.generate(new RunOptions().seed(8).batch(2)));
        session.unset("label");
        made.add(session.generate(5));
        session.set("label", 2);
        session.unsetAll();
        made.add(session.generate(5));
      }
    }
    write(words[0], made);
  }

  static void dtypes(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options().batch(2))) {
      session.set("float32", new float[] {0.5f, -2.25f});
      session.set("float64", new double[] {1.5, -0.125, 3.0, 4.0});
      session.set("float16", new short[] {0x3C00, (short) 0xC000}); // 1 and -2
      session.set("int64", new long[] {-3, 1L << 20});
      session.set("int32", new int[] {7, -8});
      session.set("int8", new byte[] {-128, 127});
      session.set("uint8", new byte[] {(byte) 200, 1});
      session.set("bool", new byte[] {1, 0});
      write(words[0], Arrays.asList(session.generate(new RunOptions().seed(1).batch(2))));
      for (Condition c : model.info().conditions) {
        only(c, "FLOAT32", () -> session.set(c.name, new float[2]));
        only(c, "FLOAT64", () -> session.set(c.name, new double[2]));
        only(c, "FLOAT16", () -> session.set(c.name, new short[2]));
        only(c, "INT64", () -> session.set(c.name, new long[2]));
        only(c, "INT32", () -> session.set(c.name, new int[2]));
        only(c, "INT8 UINT8 BOOL", () -> session.set(c.name, new byte[2]));
      }
    }
  }

  private static void only(Condition condition, String dtypes, Work set) throws Exception {
    if (Arrays.asList(dtypes.split(" ")).contains(condition.dtype.name())) {
      set.run();
    } else {
      refused(EdgegenException.BAD_DTYPE, set);
    }
  }

  static void nonfinite(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      session.set("float64", 1e300); // more than the network's float32 holds
      refused(EdgegenException.NONFINITE, () -> session.generate(1));
      final float[] sample = session.generate(new RunOptions().seed(1).allowNonfinite(true));
      check(sample[0] == Float.POSITIVE_INFINITY, "expected infinity, found " + sample[0]);
    }
  }

  static void stream(String[] words) throws Exception {
    final List<float[]> made = new ArrayList<>();
    try (Model model = Model.open(bundle); Session session = model.createSession(options().batch(2))) {
      final RunOptions first = new RunOptions().seed(4).batch(2);
      for (int i = 0; i < 3; i++) {
        session.set("frame", new float[] {i, 1, 2, 3, -i, 5, 6, 7});
        made.add(session.streamStep(first.seed(4 + i))); // the first step's seed counts
        refused(EdgegenException.BAD_ARGUMENT, () -> session.streamStep(new RunOptions().noise(new float[8])));
        session.set("frame", new float[4]);
        refused(EdgegenException.CANCELLED, () -> session.streamStep(new RunOptions().onStep((done, total, state) -> false)));
      }
      made.add(session.streamStep(new RunOptions())); // of the stream's batch
      session.streamReset();
      made.add(session.streamStep(new RunOptions().seed(9)));
      refused(EdgegenException.BAD_STATE, () -> session.generate(new RunOptions().program("stream")));
      session.streamReset();
      refused(EdgegenException.BAD_STATE, () -> session.streamStep(new RunOptions().program("once")));
      check(made.get(3).length == 8 && made.get(4).length == 4, "a stream keeps its batch until it is reset");
      final List<Program> programs = model.info().programs;
      check(!programs.get(0).stream && programs.get(1).stream, "info says which program is a stream");
    }
    write(words[0], made);
  }

  // ---- what is inside ----

  static void inside(String[] words) throws Exception {
    try (Model model = Model.open(bundle)) {
      final ModelInfo m = model.info();
      final StringBuilder out = new StringBuilder();
      line(out, m.name, m.summary, m.licence, m.producer, m.bytes, m.trustedPickle, m.low, m.high, m.image, m.shape, m.elements);
      for (Condition c : m.conditions) line(out, c.name, c.summary, c.dtype, c.shape, c.minimum, c.maximum, c.defaultValue, c.nullValue);
      for (Program p : m.programs) line(out, p.name, p.steps, p.evaluations, p.stream, p.reads(0), p.reads(1), p.reads(-1), p.reads(64));
      for (Variant v : m.variants) line(out, v.name, v.engine, v.providers, v.milliseconds, v.bytes, v.golden);
      out.append(model.document("recipe"));
      Files.write(Paths.get(words[0]), out.toString().getBytes(StandardCharsets.UTF_8));
      thrown(UnsupportedOperationException.class, () -> m.programs.remove(0));
      thrown(UnsupportedOperationException.class, () -> m.shape.set(0, 2));
      try (Session session = model.createSession(options().batch(5))) {
        check(session.info().variant.equals(m.variants.get(0).name) && session.info().batch == 5, "the session's info");
        check(session.info().engine.startsWith("ONNX Runtime ") && session.info().engine.endsWith(onnxruntime), session.info().engine);
      }
      check(Model.libraryVersion().matches("\\d+\\.\\d+\\.\\d+.*"), Model.libraryVersion());
    }
  }

  private static void line(StringBuilder out, Object... fields) {
    for (Object field : fields) out.append(field).append('|');
    out.append('\n');
  }

  static void constants(String[] words) throws Exception {
    for (Field field : EdgegenException.class.getFields()) {
      if (Modifier.isStatic(field.getModifiers())) System.out.println("EG_" + field.getName() + " = " + field.getInt(null));
    }
  }

  static void selfTest(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options().variant(words[0]))) {
      session.set("label", 3);
      final float[] before = session.generate(5);
      for (Golden g : session.selfTest()) System.out.println(g.program + " " + g.passed + " " + (g.rmse <= g.tolerance));
      check(Arrays.equals(before, session.generate(5)), "conditions that were set stay set");
    }
  }

  static void report(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      refused(EdgegenException.BAD_STATE, session::report);
      session.generate(new RunOptions().steps(2));
      final Report report = session.report();
      check(report.program.equals(words[0]) && report.variant.equals(words[1]), report.program + " " + report.variant);
      check(report.evaluations == 4, report.evaluations + " evaluations, expected two guided ones");
      check(report.networkSeconds > 0 && report.seconds > report.networkSeconds && report.seconds < 60, "seconds: " + report.seconds);
    }
  }

  // ---- errors ----

  static void errors(String[] words) throws Exception {
    final String missing = words[0];
    say("missing file", () -> Model.open(missing));
    say("missing file, mapped", () -> Model.openMapped(missing));
    say("another kind of file", () -> Model.open(onnxruntime));
    say("no bytes", () -> Model.open(new byte[0]));
    say("a path with NUL", () -> Model.open("a\0b"));
    say("no path", () -> Model.open((String) null));
    final byte[] bytes = Files.readAllBytes(Paths.get(bundle));
    say("a truncated bundle", () -> Model.open(Arrays.copyOf(bytes, bytes.length - 1)));
    bytes[bytes.length - 1] ^= 1;
    say("a damaged bundle", () -> Model.open(bytes));
    say("a heap buffer in place", () -> Model.openInPlace(ByteBuffer.wrap(bytes)));
    try (Model model = Model.open(bundle); Session session = model.createSession(options().batch(2))) {
      say("unknown document", () -> model.document("novel"));
      say("unknown variant", () -> model.createSession(options().variant("int3")));
      say("no engine", () -> model.createSession(options().onnxruntime(missing)));
      say("threads", () -> model.createSession(options().threads(-1)));
      say("session batch", () -> model.createSession(options().batch(0)));
      say("unknown condition", () -> session.set("lable", 1));
      say("unknown condition, array", () -> session.set("lable", new long[] {1}));
      say("unknown condition, unset", () -> session.unset("lable"));
      say("a name with NUL", () -> session.set("label\0", 1));
      say("no name", () -> session.set(null, 1));
      say("out of range", () -> session.set("label", 5));
      say("out of range, array", () -> session.set("label", new long[] {0, -1}));
      say("not whole", () -> session.set("label", 1.5));
      say("NaN", () -> session.set("label", Double.NaN));
      say("another dtype", () -> session.set("label", new int[] {1}));
      say("too many values", () -> session.set("label", new long[3]));
      say("no values", () -> session.set("label", new long[0]));
      say("unknown program", () -> session.generate(new RunOptions().program("euler")));
      say("unknown steps", () -> session.generate(new RunOptions().steps(77)));
      say("negative steps", () -> session.generate(new RunOptions().steps(-1)));
      say("batch", () -> session.generate(new RunOptions().batch(3)));
      say("negative batch", () -> session.generate(new RunOptions().batch(-1)));
      say("noise of another size", () -> session.generate(new RunOptions().noise(new float[63])));
      final float[] noise = new float[64];
      noise[63] = Float.NaN;
      say("noise with NaN", () -> session.generate(new RunOptions().noise(noise)));
      say("no stream", () -> session.streamStep(new RunOptions()));
      session.set("label", new long[] {0, 3});
      say("a batch other than the condition's", () -> session.generate(1));
    }
  }

  private static void say(String what, Work work) {
    final EdgegenException e = thrown(EdgegenException.class, work);
    System.out.println(what + "|" + e.status + "|" + e.getMessage());
  }

  // ---- closing ----

  static void closed(String[] words) throws Exception {
    final Model model = Model.open(bundle);
    final Session session = model.createSession(options());
    model.close();
    model.close();
    session.generate(1); // keeps its model alive
    refuses(model, "open", "openMapped", "openInPlace", "libraryVersion", "close");
    session.close();
    session.close();
    session.cancel();
    refuses(session, "cancel", "close");
  }

  /** Every public method but those named throws IllegalStateException. */
  private static void refuses(Object closed, String... but) throws Exception {
    int count = 0;
    for (Method method : closed.getClass().getDeclaredMethods()) {
      if (!Modifier.isPublic(method.getModifiers()) || Arrays.asList(but).contains(method.getName())) continue;
      final Class<?>[] types = method.getParameterTypes();
      final Object[] arguments = new Object[types.length];
      for (int i = 0; i < types.length; i++) arguments[i] = argument(types[i]);
      final InvocationTargetException e = thrown(InvocationTargetException.class, () -> method.invoke(closed, arguments));
      check(e.getCause() instanceof IllegalStateException, method + " threw " + e.getCause());
      count++;
    }
    check(count >= 4, "only " + count + " methods were tried");
  }

  private static Object argument(Class<?> type) throws Exception {
    if (type == String.class) return "label";
    if (type == double.class) return 1.0;
    if (type == long.class) return 1L;
    return type.isArray() ? Array.newInstance(type.getComponentType(), 1) : type.getConstructor().newInstance();
  }

  /** A model or session that is closed by another thread, or by the listener, while a run is in it. */
  static void closeWithinARun(String[] words) throws Exception {
    for (boolean byListener : new boolean[] {false, true}) {
      final Model model = Model.open(bundle);
      final Session session = model.createSession(options());
      final AtomicInteger steps = new AtomicInteger();
      final Work close =
          () -> {
            model.close();
            session.close();
          };
      final StepListener listener =
          (done, total, state) -> {
            steps.incrementAndGet();
            try {
              if (byListener) close.run();
              if (!byListener) start(close).join(); // returns although the run has not ended
            } catch (Exception e) {
              throw new AssertionError(e);
            }
            return true;
          };
      refused(EdgegenException.CANCELLED, () -> session.generate(new RunOptions().onStep(listener)));
      check(steps.get() == 1, steps + " steps after the session was closed");
      thrown(IllegalStateException.class, () -> session.generate(1));
    }
  }

  static void races(String[] words) throws Exception {
    final long end = System.nanoTime() + 3_000_000_000L;
    int runs = 0;
    int sessions = 0;
    try (Model model = Model.open(bundle); Session keepsEngineOpen = model.createSession(options())) {
      keepsEngineOpen.generate(1);
      while (System.nanoTime() < end) {
        final Session session = model.createSession(options());
        final AtomicBoolean done = new AtomicBoolean();
        final Thread canceller =
            start(
                () -> {
                  while (!done.get()) session.cancel();
                });
        final long delay = sessions++ % 50 * 20_000L;
        final Thread closer =
            start(
                () -> {
                  LockSupport.parkNanos(delay);
                  session.close();
                });
        try {
          while (true) {
            try {
              session.generate(++runs);
            } catch (EdgegenException e) {
              check(e.status == EdgegenException.CANCELLED, e.getMessage());
            }
          }
        } catch (IllegalStateException e) {
          closer.join();
          done.set(true);
          canceller.join();
        }
      }
    }
    System.out.println(sessions + " sessions, " + runs + " runs");
    check(sessions > 100 && runs > 100, "too few to see a race");
  }

  // ---- listeners and threads ----

  static void listener(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      final List<float[]> states = new ArrayList<>();
      final StringBuilder seen = new StringBuilder();
      final RunOptions options = new RunOptions().seed(5);
      final float[] sample =
          session.generate(
              options.onStep(
                  (done, total, state) -> {
                    states.add(state);
                    seen.append(done).append('/').append(total).append(' ');
                    return true;
                  }));
      check(seen.toString().equals("1/4 2/4 3/4 4/4 "), seen.toString());
      check(Arrays.equals(sample, states.get(3)), "the last state is the sample");
      check(!Arrays.equals(states.get(2), states.get(3)), "each state is an array of its own");
      seen.setLength(0);
      options.onStep(
          (done, total, state) -> {
            seen.append(done);
            return done < 2;
          });
      refused(EdgegenException.CANCELLED, () -> session.generate(options));
      check(seen.toString().equals("12"), "no step after the one that was refused: " + seen);
      check(Arrays.equals(sample, session.generate(5)), "a cancelled session generates as before");
    }
  }

  static void exceptions(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      final float[] sample = session.generate(5);
      final AtomicInteger steps = new AtomicInteger();
      for (Throwable thrown : new Throwable[] {new IllegalArgumentException("no"), new StackOverflowError(), new IOException("checked")}) {
        steps.set(0);
        final RunOptions options =
            new RunOptions()
                .noise(new float[64])
                .program(model.info().programs.get(0).name)
                .onStep(
                    (done, total, state) -> {
                      steps.incrementAndGet();
                      throw Checks.<RuntimeException>unchecked(thrown);
                    });
        check(thrown(Throwable.class, () -> session.generate(options)) == thrown, "the listener's own exception comes out");
        check(steps.get() == 1, steps + " steps, expected that the first one ended the run");
        check(Arrays.equals(sample, session.generate(5)), "the session generates as before");
      }
      refused(EdgegenException.BUSY, () -> session.generate(new RunOptions().onStep((done, total, state) -> session.generate(1).length > 0)));
      check(Arrays.equals(sample, session.generate(5)), "a listener that generated does no harm");
    }
  }

  @SuppressWarnings("unchecked")
  private static <T extends Throwable> RuntimeException unchecked(Throwable thrown) throws T {
    throw (T) thrown;
  }

  static void cancel(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      final AtomicInteger steps = new AtomicInteger();
      session.cancel(); // nothing to stop
      final float[] sample = session.generate(5);
      final StepListener listener =
          (done, total, state) -> {
            steps.incrementAndGet();
            try {
              start(session::cancel).join();
            } catch (InterruptedException e) {
              throw new AssertionError(e);
            }
            return true;
          };
      refused(EdgegenException.CANCELLED, () -> session.generate(new RunOptions().onStep(listener)));
      check(steps.get() == 1, steps + " steps, expected that cancel ended the run");
      refused(EdgegenException.BAD_STATE, session::report);
      check(Arrays.equals(sample, session.generate(5)), "a cancelled session generates as before");
    }
  }

  static void secondThread(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      final AtomicInteger refusals = new AtomicInteger();
      final Work others =
          () -> {
            refused(EdgegenException.BUSY, () -> session.set("label", 1));
            refused(EdgegenException.BUSY, () -> session.generate(1));
            refused(EdgegenException.BUSY, session::report);
            refused(EdgegenException.BUSY, session::info);
            refusals.incrementAndGet();
          };
      session.generate(
          new RunOptions()
              .onStep(
                  (done, total, state) -> {
                    try {
                      start(others).join();
                    } catch (InterruptedException e) {
                      throw new AssertionError(e);
                    }
                    return true;
                  }));
      check(refusals.get() == 4, refusals + " steps at which the second thread was refused");
    }
  }

  static void fourThreads(String[] words) throws Exception {
    final int runs = 100;
    try (Model model = Model.open(bundle)) {
      final float[][] expected = new float[runs][];
      try (Session session = model.createSession(options())) {
        for (int i = 0; i < runs; i++) expected[i] = labelled(session, i);
      }
      final CountDownLatch ready = new CountDownLatch(4);
      final ExecutorService threads = Executors.newFixedThreadPool(4);
      final List<Future<Integer>> equal = new ArrayList<>();
      for (int t = 0; t < 4; t++) {
        equal.add(
            threads.submit(
                () -> {
                  int count = 0;
                  try (Session session = model.createSession(options())) {
                    ready.countDown();
                    ready.await();
                    for (int i = 0; i < runs; i++) count += Arrays.equals(expected[i], labelled(session, i)) ? 1 : 0;
                  }
                  return count;
                }));
      }
      for (Future<Integer> count : equal) check(count.get() == runs, count.get() + " of " + runs + " samples are equal");
      threads.shutdown();
    }
  }

  private static float[] labelled(Session session, int seed) {
    session.set("label", seed % 4);
    return session.generate(seed);
  }

  // ---- bundles in memory, and memory ----

  static void memory(String[] words) throws Exception {
    final byte[] bytes = Files.readAllBytes(Paths.get(bundle));
    final float[] expected;
    try (Model model = Model.open(bundle)) {
      expected = sample(model);
    }
    check(Arrays.equals(expected, sample(Model.openMapped(bundle))), "a mapped file");
    check(Arrays.equals(expected, sample(Model.open(bytes))), "an array");
    final byte[] shifted = new byte[bytes.length + 7];
    System.arraycopy(bytes, 0, shifted, 5, bytes.length);
    final ByteBuffer heap = ByteBuffer.wrap(shifted, 5, bytes.length);
    check(Arrays.equals(expected, sample(Model.open(heap))) && heap.position() == 5, "a heap buffer");
    check(Arrays.equals(expected, sample(Model.open(heap.slice()))), "a slice of a heap buffer");
    check(Arrays.equals(expected, sample(Model.open(heap.asReadOnlyBuffer()))), "a heap buffer that is read-only");
    final ByteBuffer direct = ByteBuffer.allocateDirect(shifted.length);
    direct.put(shifted);
    direct.position(5).limit(5 + bytes.length);
    final Model copied = Model.open(direct);
    check(direct.position() == 5 && direct.remaining() == bytes.length, "position and limit stay as they are");
    for (int i = 5; i < direct.limit(); i++) direct.put(i, (byte) 0);
    check(Arrays.equals(expected, sample(copied)), "a direct buffer was copied");
    for (int i = 5; i < direct.limit(); i++) direct.put(i, shifted[i]);
    check(Arrays.equals(expected, sample(Model.openInPlace(direct))), "a direct buffer in place");
    refused(EdgegenException.TRUNCATED, () -> Model.open(ByteBuffer.allocateDirect(0)));
  }

  private static float[] sample(Model model) {
    try (Model closed = model; Session session = closed.createSession(options())) {
      return session.generate(5);
    }
  }

  /** A model in place, over a mapping that nothing but the session holds. */
  static void inPlace(String[] words) throws Exception {
    final float[] expected = sample(Model.open(bundle));
    final Session session = mapped();
    for (int i = 0; i < 5; i++) {
      System.gc();
      Thread.sleep(20);
    }
    check(Files.readAllLines(Paths.get("/proc/self/maps")).stream().anyMatch(line -> line.endsWith(bundle)), "the mapping lives");
    check(Arrays.equals(expected, session.generate(5)), "a mapped buffer in place");
    session.close();
  }

  private static Session mapped() throws IOException {
    try (FileChannel file = FileChannel.open(Paths.get(bundle), StandardOpenOption.READ);
        Model model = Model.openInPlace(file.map(FileChannel.MapMode.READ_ONLY, 0, file.size()))) {
      return model.createSession(options());
    }
  }

  /** Resident memory in KiB. */
  private static long resident() throws IOException {
    System.gc();
    for (String line : Files.readAllLines(Paths.get("/proc/self/status"))) {
      if (line.startsWith("VmRSS:")) return Long.parseLong(line.replaceAll("\\D", ""));
    }
    throw new AssertionError("no VmRSS");
  }

  /** Repeats work, and says by how much memory grew after a warm-up. */
  private static void grows(String what, int warmUp, int times, Work work) throws Exception {
    for (int i = 0; i < warmUp; i++) work.run();
    final long before = resident();
    for (int i = 0; i < times; i++) work.run();
    System.out.println(what + "|" + times + "|" + (resident() - before));
  }

  static void openings(String[] words) throws Exception {
    final byte[] bytes = Files.readAllBytes(Paths.get(bundle));
    final ByteBuffer direct = ByteBuffer.allocateDirect(bytes.length);
    direct.put(bytes).flip();
    final AtomicInteger number = new AtomicInteger();
    grows(
        "open and close",
        300,
        2000,
        () -> {
          final int i = number.incrementAndGet() % 4;
          try (Model model = i == 0 ? Model.open(bundle) : i == 1 ? Model.open(bytes) : i == 2 ? Model.open(direct) : Model.openInPlace(direct);
              Session session = model.createSession(options())) {
            session.set("label", 2);
            session.generate(i);
          }
        });
  }

  static void calls(String[] words) throws Exception {
    final byte[] half = Arrays.copyOf(Files.readAllBytes(Paths.get(bundle)), 100);
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      final long[] label = {2};
      final String program = model.info().programs.get(0).name;
      final RunOptions wrong = new RunOptions().program(program).noise(new float[63]);
      final RunOptions right = new RunOptions().program(program).noise(new float[64]).onStep((done, total, state) -> true);
      grows(
          "settings",
          20_000,
          400_000,
          () -> {
            session.set("label", 3);
            session.set("label", label);
            session.unset("label");
          });
      grows(
          "refusals",
          5_000,
          50_000,
          () -> {
            refused(EdgegenException.UNKNOWN_NAME, () -> session.set("lable", label));
            refused(EdgegenException.BAD_SHAPE, () -> session.generate(wrong));
            refused(EdgegenException.TRUNCATED, () -> Model.open(half));
            refused(EdgegenException.NO_VARIANT, () -> model.createSession(options().variant("int3")));
          });
      grows(
          "runs",
          5_000,
          40_000,
          () -> {
            session.generate(right);
            session.report();
            session.info();
          });
    }
  }

  /** Long lists and a run of many steps, for -Xcheck:jni to count references. */
  static void many(String[] words) throws Exception {
    try (Model model = Model.open(bundle); Session session = model.createSession(options())) {
      final AtomicInteger steps = new AtomicInteger();
      session.generate(
          new RunOptions()
              .program("long")
              .onStep(
                  (done, total, state) -> {
                    steps.incrementAndGet();
                    return true;
                  }));
      System.out.println(model.info().programs.size() + " programs, " + steps + " steps");
    }
  }
}
