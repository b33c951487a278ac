package io.edgecompress.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertTrue;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

/** The whole core, with the real engine on real models. */
public class BenchmarkRunTest {
    @Rule public final TemporaryFolder temporary = new TemporaryFolder();

    private File folder;
    private final Cancellation cancellation = new Cancellation();

    @Before
    public void copy() throws Exception {
        HostLibrary.load();
        folder = TestBundles.copy(new File(temporary.getRoot(), "bundle"));
    }

    private static Plan plan(String... words) throws Failure {
        Map<String, String> options = new HashMap<>();
        options.put("threads", "1");
        options.put("xnnpack", "off");
        options.put("min_s", "0");
        options.put("runs", "10");
        for (int i = 0; i < words.length; i += 2) {
            options.put(words[i], words[i + 1]);
        }
        return Plan.parse(options);
    }

    private BenchmarkRun run(Engine engine, Clock clock) {
        return new BenchmarkRun(engine, new HostProbe(), clock, "measured_host", "test")
                .cancellation(cancellation);
    }

    private JSONObject run(String... words) throws Exception {
        return run(new TfliteEngine(), Clock.SYSTEM).run(folder, plan(words));
    }

    private static JSONObject measurement(JSONObject result, int index) throws Exception {
        return result.getJSONArray("measurements").getJSONObject(index);
    }

    private static void fails(JSONObject holder, String code, String message) throws Exception {
        JSONObject error = holder.getJSONObject("error");
        assertEquals(error.toString(), code, error.getString("code"));
        assertTrue(error.toString(), error.getString("message").contains(message));
        assertFalse(error.getString("message").contains("\n"));
    }

    @Test
    public void measuresEveryModelWithEverySetting() throws Exception {
        JSONObject result = run("threads", "1,2", "xnnpack", "on,off");
        assertTrue(result.toString(), result.isNull("error"));
        assertEquals(12, result.getJSONArray("measurements").length());
        for (int i = 0; i < 12; i++) {
            JSONObject one = measurement(result, i);
            assertTrue(one.toString(), one.isNull("error"));
            JSONObject latency = one.getJSONObject("latency_us");
            assertTrue(latency.getDouble("min") > 0);
            assertTrue(latency.getDouble("min") <= latency.getDouble("median"));
            assertTrue(latency.getDouble("median") <= latency.getDouble("max"));
            assertEquals(10, latency.getInt("samples"));
            assertEquals(5, latency.getJSONArray("repeat_medians").length());
            assertTrue(one.getJSONObject("config").isNull("affinity"));
            JSONObject golden = one.getJSONObject("golden");
            assertTrue(golden.toString(), golden.getBoolean("passed"));
            assertEquals(80, golden.getInt("checked"));
            assertEquals(8, golden.getInt("same_answer"));
        }
        assertEquals(
                "[\"int8-pruned\",\"int8-pruned\",\"int8-pruned\",\"int8-pruned\"]",
                kinds(result, 4).toString());
    }

    private static JSONArray kinds(JSONObject result, int count) throws Exception {
        JSONArray kinds = new JSONArray();
        for (int i = 0; i < count; i++) {
            kinds.put(measurement(result, i).getJSONObject("model").getString("kind"));
        }
        return kinds;
    }

    @Test
    public void namedModelsAloneAreRun() throws Exception {
        assertEquals(1, run("models", "int8").getJSONArray("measurements").length());
        assertEquals(1, run("models", TestBundles.INT8).getJSONArray("measurements").length());
        JSONObject result = run("models", "int8,int4");
        fails(result, "arguments", "models names [int4], but the bundle has [int8-pruned, int8");
    }

    @Test
    public void aWrongGoldenOutputIsFound() throws Exception {
        JSONObject json = TestBundles.json(folder);
        JSONObject golden = json.getJSONArray("models").getJSONObject(1).getJSONObject("golden");
        String path = golden.getJSONArray("outputs").getString(0);
        File file = new File(folder, path);
        byte[] content = Files.readAllBytes(file.toPath());
        content[0] += 40;
        Files.write(file.toPath(), content);
        golden.getJSONObject("sha256").put(path, Disk.sha256(content));
        TestBundles.write(folder, json);
        JSONObject one = measurement(run("models", "int8"), 0);
        assertFalse(one.getJSONObject("golden").getBoolean("passed"));
        assertTrue(one.getJSONObject("golden").getInt("max_steps") >= 39);
        assertTrue(one.getJSONObject("golden").getInt("equal") < 80);
        assertEquals("fail", new Result.Measurement(one).verdict());
    }

    @Test
    public void equalKernelsMustAgreeToTheBit() throws Exception {
        Bundle bundle = BundleReader.read(folder);
        Bundle.Model model = bundle.models.get(1);
        ByteBuffer[] want = {Buffers.direct(10)};
        ByteBuffer[] got = {Buffers.direct(10)};
        got[0].put(3, (byte) 1);
        Bundle.Golden golden = model.golden;
        GoldenCheck same = new GoldenCheck(model, golden.engineVersion, golden.kernels);
        same.add(got, want);
        assertFalse(same.passed());
        GoldenCheck other = new GoldenCheck(model, golden.engineVersion, "built-in");
        other.add(got, want);
        assertTrue(other.passed());
        got[0].put(3, (byte) 2);
        GoldenCheck far = new GoldenCheck(model, "1.0", null);
        far.add(got, want);
        assertFalse(far.passed());
        // Two outputs that lie a whole range apart.
        got[0].put(3, (byte) -128);
        want[0].put(3, (byte) 127);
        far = new GoldenCheck(model, "1.0", null);
        far.add(got, want);
        assertEquals(255L, (long) far.maxSteps());
    }

    @Test
    public void floatOutputsAreComparedWithinTheTolerance() throws Exception {
        Bundle.Model model = BundleReader.read(folder).models.get(2);
        float[][] pairs = {{1, 1.000005f}, {0, 1e-3f}, {Float.NaN, 0}, {Float.NaN, Float.NaN}};
        boolean[] passes = {true, false, false, true};
        for (int i = 0; i < pairs.length; i++) {
            ByteBuffer[] got = {Buffers.direct(40)};
            ByteBuffer[] want = {Buffers.direct(40)};
            got[0].putFloat(8, pairs[i][0]);
            want[0].putFloat(8, pairs[i][1]);
            GoldenCheck check = new GoldenCheck(model, "1.0", null);
            check.add(got, want);
            assertEquals("pair " + i, passes[i], check.passed());
            // NaN never gets into the file.
            assertNotNull(check.toJson().toString());
        }
    }

    @Test
    public void withoutGoldenFilesTheInputIsRandom() throws Exception {
        JSONObject json = TestBundles.json(folder);
        json.getJSONArray("models").getJSONObject(1).put("golden", JSONObject.NULL);
        TestBundles.write(folder, json);
        JSONObject one = measurement(run("models", "int8"), 0);
        assertTrue(one.isNull("golden"));
        assertEquals("random", one.getJSONObject("config").getString("input"));
        assertTrue(one.isNull("error"));
    }

    @Test
    public void oneDamagedModelDoesNotStopTheOthers() throws Exception {
        File file = new File(folder, TestBundles.INT8);
        byte[] content = Files.readAllBytes(file.toPath());
        content[content.length / 2] ^= 1;
        Files.write(file.toPath(), content);
        JSONObject result = run();
        assertTrue(result.isNull("error"));
        fails(measurement(result, 1), "bundle", "is another file than the bundle names");
        assertTrue(measurement(result, 1).isNull("latency_us"));
        assertTrue(measurement(result, 0).isNull("error"));
        assertTrue(measurement(result, 2).isNull("error"));
        Files.write(file.toPath(), Arrays.copyOf(content, 100));
        fails(measurement(run(), 1), "bundle", "has 100 bytes instead of");
        assertTrue(file.delete());
        fails(measurement(run(), 1), "bundle", "is missing from the bundle");
    }

    @Test
    public void goldenFilesOfTheWrongSizeAreRefused() throws Exception {
        File file = new File(folder, "golden/int8_input_0.bin");
        Files.write(file.toPath(), new byte[5]);
        fails(measurement(run(), 1), "bundle", "has 5 bytes instead of 6272");
    }

    @Test
    public void whatIsNoModelIsRefusedBeforeTheEngineSeesIt() throws Exception {
        TestBundles.replaceModel(folder, 1, "no flatbuffer at all".getBytes("UTF-8"));
        fails(measurement(run(), 1), "bundle", "it is not a .tflite flatbuffer");
    }

    @Test
    public void anotherModelThanDescribedIsRefused() throws Exception {
        byte[] floats = Files.readAllBytes(new File(folder, "digits_float32.tflite").toPath());
        TestBundles.replaceModel(folder, 1, floats);
        fails(measurement(run(), 1), "bundle", "bytes in input 0, but bundle.json says 784");
    }

    @Test
    public void theRuntimeAModelNeedsIsNamed() throws Exception {
        JSONObject json = TestBundles.json(folder);
        json.getJSONArray("models").getJSONObject(1).put("runtime", "lce");
        json.getJSONArray("models").getJSONObject(2).put("runtime", "tflm");
        TestBundles.write(folder, json);
        JSONObject result = run();
        fails(measurement(result, 1), "operator", "needs Larq Compute Engine");
        fails(measurement(result, 2), "operator", "needs TensorFlow Lite Micro");
    }

    @Test
    public void customOperatorsAreRefusedByName() throws Exception {
        TestBundles.replaceModel(folder, 1, CustomModel.of("LceBconv2d"));
        fails(measurement(run(), 1), "operator", "LceBconv2d needs Larq Compute Engine");
        TestBundles.replaceModel(folder, 1, CustomModel.of("TFLM_DECODE"));
        fails(measurement(run(), 1), "operator", "TFLM_DECODE needs TensorFlow Lite Micro");
        TestBundles.replaceModel(folder, 1, CustomModel.of("MyOperator"));
        fails(measurement(run(), 1), "operator", "MyOperator needs a runtime that registers it");
    }

    @Test
    public void operatorsThatTheRuntimeLacksAreNamed() throws Exception {
        TestBundles.replaceModel(folder, 1, CustomModel.builtin(3, 29));
        String message = "Operator CONCAT_EMBEDDINGS version 1 is not in TensorFlow Lite";
        fails(measurement(run(), 1), "operator", message);
    }

    @Test
    public void aModelLargerThanMemoryIsRefused() throws Exception {
        Bundle bundle = BundleReader.read(folder);
        try {
            ModelFile.open(bundle, bundle.models.get(1), 3L);
            assertTrue(false);
        } catch (Failure e) {
            assertEquals(Failure.Code.MEMORY, e.code);
            assertTrue(e.getMessage().contains("only 3 KiB of memory are free"));
        }
        Engine hungry =
                new FakeEngine(null, 0) {
                    @Override
                    public Session open(ByteBuffer model, int threads, boolean xnnpack) {
                        throw new OutOfMemoryError("Java heap space");
                    }
                };
        JSONObject result = run(hungry, Clock.SYSTEM).run(folder, plan());
        fails(measurement(result, 0), "memory", "memory");
    }

    @Test
    public void aMissingBundleIsAResult() throws Exception {
        folder = new File(temporary.getRoot(), "nothing");
        JSONObject result = run();
        fails(result, "bundle", "There is no bundle.json");
        assertTrue(result.isNull("bundle"));
        assertEquals(0, result.getJSONArray("measurements").length());
    }

    @Test
    public void aCancelledRunKeepsWhatItHas() throws Exception {
        List<Integer> steps = new ArrayList<>();
        BenchmarkRun run =
                run(new TfliteEngine(), Clock.SYSTEM)
                        .listener(
                                progress -> {
                                    steps.add(progress.step);
                                    if (progress.step == 1) {
                                        cancellation.request();
                                    }
                                });
        JSONObject result = run.run(folder, plan());
        fails(result, "cancelled", "was cancelled");
        assertEquals(1, result.getJSONArray("measurements").length());
        assertTrue(steps.contains(0));
    }

    /** With a clock that is ours, every statistic is known. */
    @Test
    public void timesAreThoseOfTheClock() throws Exception {
        // First, eight golden samples, a warm-up of two, then samples of 100, 200, ... us.
        FakeEngine.Ticker clock = new FakeEngine.Ticker();
        FakeEngine engine = new FakeEngine(clock, 784);
        engine.loadUs = 5000;
        engine.timesUs = new double[] {900, 1, 1, 1, 1, 1, 1, 1, 1, 300, 500, 100, 200, 300, 400};
        JSONObject one =
                measurement(
                        run(engine, clock)
                                .run(
                                        folder,
                                        plan(
                                                "models", "int8", "warmup", "2", "runs", "4",
                                                "repeats", "2")),
                        0);
        JSONObject latency = one.getJSONObject("latency_us");
        assertEquals(5000, latency.getDouble("init"), 1e-9);
        assertEquals(900, latency.getDouble("first"), 1e-9);
        assertEquals(400, latency.getDouble("warmup"), 1e-9);
        assertEquals(250, latency.getDouble("median"), 1e-9);
        assertEquals(370, latency.getDouble("p90"), 1e-9);
        assertEquals(111.80339887498948, latency.getDouble("std"), 1e-9);
        assertEquals(1, latency.getInt("inferences_per_sample"));
        JSONArray medians = latency.getJSONArray("repeat_medians");
        assertArrayEquals(
                new double[] {150, 350},
                new double[] {medians.getDouble(0), medians.getDouble(1)},
                1e-9);
        assertEquals(133.33333333333334, latency.getDouble("spread_pct"), 1e-9);
        Result.Measurement read = new Result.Measurement(one);
        assertEquals("fail", read.verdict());
        assertEquals("uncertain", check(one, "latency").getString("verdict"));
        assertTrue(check(one, "latency").getString("reason").contains("133.3 % apart"));
    }

    private static JSONObject check(JSONObject measurement, String rule) throws Exception {
        JSONArray checks = measurement.getJSONArray("checks");
        for (int i = 0; i < checks.length(); i++) {
            if (checks.getJSONObject(i).getString("rule").equals(rule)) {
                return checks.getJSONObject(i);
            }
        }
        throw new AssertionError("no check " + rule);
    }

    @Test
    public void fastModelsAreTimedInGroups() throws Exception {
        FakeEngine.Ticker clock = new FakeEngine.Ticker();
        FakeEngine engine = new FakeEngine(clock, 784);
        engine.timesUs = new double[] {2};
        JSONObject one = measurement(run(engine, clock).run(folder, plan("models", "int8")), 0);
        JSONObject latency = one.getJSONObject("latency_us");
        assertEquals(10, latency.getInt("inferences_per_sample"));
        assertEquals(2, latency.getDouble("median"), 1e-9);
        assertEquals("pass", check(one, "latency").getString("verdict"));
        assertEquals("pass", check(one, "file_size").getString("verdict"));
    }

    @Test
    public void theLeastDurationIsKept() throws Exception {
        FakeEngine.Ticker clock = new FakeEngine.Ticker();
        FakeEngine engine = new FakeEngine(clock, 784);
        engine.timesUs = new double[] {1000};
        JSONObject one =
                measurement(
                        run(engine, clock).run(folder, plan("models", "int8", "min_s", "2")), 0);
        assertEquals(2000, one.getJSONObject("latency_us").getInt("samples"), 5);
    }

    @Test
    public void verdictsFallOnlyWhereTheWholeBandDoes() {
        assertEquals("pass", Checks.judge(90, 100, 100.0));
        assertEquals("fail", Checks.judge(101, 110, 100.0));
        assertEquals("uncertain", Checks.judge(90, 110, 100.0));
        assertEquals("not_applicable", Checks.judge(90, 110, null));
    }

    @Test
    public void aHotterPhoneIsUncertain() {
        Probe.Snapshot cool = new Probe.Snapshot();
        Probe.Snapshot hot = new Probe.Snapshot();
        cool.thermal = 0;
        hot.thermal = 2;
        Checks checks = new Checks();
        checks.latency(
                new double[] {50, 51}, 50, 100.0, new Probe.Snapshot[] {cool, hot});
        assertTrue(checks.toJson().toString().contains("got hotter"));
        assertTrue(checks.toJson().toString().contains("uncertain"));
    }

    @Test
    public void failuresOfTheEngineAreResults() throws Exception {
        FakeEngine engine = new FakeEngine(new FakeEngine.Ticker(), 784);
        engine.failure = new IllegalStateException("native code\nsaid no");
        JSONObject result = run(engine, Clock.SYSTEM).run(folder, plan("models", "int8"));
        fails(measurement(result, 0), "internal", "IllegalStateException: native code said no");
        assertTrue(Collections.singletonList("not_measured").contains(
                check(measurement(result, 0), "latency").getString("verdict")));
    }

    @Test
    public void theRunnerAlwaysWritesItsResult() throws Exception {
        File file = new File(temporary.getRoot(), "out/result.json");
        String[] good = {
            "--bundle", folder.getPath(), "--result", file.getPath(), "--threads", "1", "--xnnpack",
            "off", "--runs", "5", "--min_s", "0", "--models", "int8"
        };
        assertEquals(0, Runner.run(good));
        Result result = Result.read(file);
        assertEquals("Digits", result.name);
        assertEquals(1, result.measurements.size());
        assertTrue(file.delete());
        assertEquals(1, Runner.run(new String[] {"--bundle", "/nowhere", "--result", file.getPath()}));
        assertTrue(Result.read(file).error.contains("There is no bundle.json"));
        assertTrue(file.delete());
        assertEquals(2, Runner.run(new String[] {"--result", file.getPath(), "--bogus"}));
        assertTrue(Result.read(file).error.contains("--bogus"));
        // Nothing but the result is left behind.
        assertArrayEquals(new String[] {"result.json"}, file.getParentFile().list());
    }
}
