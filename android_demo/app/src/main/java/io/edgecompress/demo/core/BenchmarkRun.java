package io.edgecompress.demo.core;

import java.io.File;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/**
 * Runs every model of a bundle with every setting of a plan: checks that it computes the right
 * thing, times it, and makes a result of it. A failure is a result, too.
 */
public final class BenchmarkRun {
    public static final String SCHEMA = "edgecompress.measurement/1";
    private static final long PROGRESS_NANOS = 100_000_000;

    private final Engine engine;
    private final Probe probe;
    private final Clock clock;
    private final String tier;
    private final JSONObject tool;
    private Progress.Listener listener = progress -> {};
    private Cancellation cancellation = new Cancellation();
    private long lastProgress = Long.MIN_VALUE;

    /**
     * Makes a run.
     *
     * @param tier `measured_device` or `measured_host`.
     */
    public BenchmarkRun(Engine engine, Probe probe, Clock clock, String tier, String version) {
        this.engine = engine;
        this.probe = probe;
        this.clock = clock;
        this.tier = tier;
        tool = Json.object().put("name", "edgecompress-demo").put("version", version).build();
    }

    public BenchmarkRun listener(Progress.Listener listener) {
        this.listener = listener;
        return this;
    }

    public BenchmarkRun cancellation(Cancellation cancellation) {
        this.cancellation = cancellation;
        return this;
    }

    /** Runs, and returns the result file's object. Never throws for what a bundle may hold. */
    public JSONObject run(File folder, Plan plan) {
        Probe.Snapshot before = probe.snapshot();
        JSONArray measurements = new JSONArray();
        Bundle bundle = null;
        Failure failure = null;
        try {
            bundle = BundleReader.read(folder);
            List<Bundle.Model> models = select(bundle, plan);
            int steps = models.size() * plan.threads.size() * plan.xnnpack.size();
            for (Bundle.Model model : models) {
                for (boolean xnnpack : plan.xnnpack) {
                    for (int threads : plan.threads) {
                        cancellation.check();
                        Setting setting = new Setting(measurements.length(), steps, threads, xnnpack);
                        measurements.put(measure(bundle, model, plan, setting));
                    }
                }
            }
        } catch (Failure | RuntimeException | OutOfMemoryError e) {
            failure = Failure.of(e);
        }
        return result(bundle, before, measurements, failure);
    }

    /** Returns the result of a run that did not begin. */
    public JSONObject failed(Failure failure) {
        return result(null, probe.snapshot(), new JSONArray(), failure);
    }

    private JSONObject result(
            Bundle bundle, Probe.Snapshot before, JSONArray measurements, Failure failure) {
        JSONObject of = null;
        if (bundle != null) {
            of =
                    Json.object()
                            .put("name", bundle.name)
                            .put("target", bundle.target)
                            .put("sha256", bundle.sha256)
                            .build();
        }
        return Json.object()
                .put("schema", SCHEMA)
                .put("tool", tool)
                .put("time", Clock.utc(clock))
                .put("bundle", of)
                .put("device", probe.device())
                .put("state", Probe.Snapshot.state(before, probe.snapshot()))
                .put("measurements", measurements)
                .put("error", failure == null ? null : failure.toJson())
                .build();
    }

    private static List<Bundle.Model> select(Bundle bundle, Plan plan) throws Failure {
        List<Bundle.Model> chosen = new ArrayList<>();
        List<String> known = new ArrayList<>();
        List<String> missing = new ArrayList<>(plan.models);
        for (Bundle.Model model : bundle.models) {
            known.add(model.kind);
            boolean named = missing.remove(model.kind) | missing.remove(model.file);
            if (named
                    || plan.models.isEmpty()
                    || plan.models.contains(model.kind)
                    || plan.models.contains(model.file)) {
                chosen.add(model);
            }
        }
        if (!missing.isEmpty()) {
            throw new Failure(
                    Failure.Code.ARGUMENTS,
                    "models names " + missing + ", but the bundle has " + known + ".");
        }
        return chosen;
    }

    private static final class Setting {
        final int step;
        final int steps;
        final int threads;
        final boolean xnnpack;

        Setting(int step, int steps, int threads, boolean xnnpack) {
            this.step = step;
            this.steps = steps;
            this.threads = threads;
            this.xnnpack = xnnpack;
        }
    }

    /** Measures one model with one setting; only a cancelled run throws. */
    private JSONObject measure(Bundle bundle, Bundle.Model model, Plan plan, Setting setting)
            throws Failure {
        Probe.Snapshot[] ends = {probe.snapshot(), null};
        String kernels = engine.kernels(setting.xnnpack);
        Json.Builder json = Json.object();
        json.put("tier", tier).put("target", bundle.target);
        json.put("model", describe(model));
        json.put("runtime", runtime(setting, kernels));
        json.put("config", config(model, plan, setting));
        tell(model, setting, 0, true);
        Checks checks = new Checks();
        checks.fileSize(model.bytes, bundle.budgets.maxFileSize);
        Measured measured = new Measured();
        Failure failure = null;
        try {
            measure(bundle, model, plan, setting, kernels, ends, measured);
        } catch (Failure | RuntimeException | LinkageError | OutOfMemoryError e) {
            failure = Failure.of(e);
            if (failure.code == Failure.Code.CANCELLED) {
                throw failure;
            }
        }
        ends[1] = probe.snapshot();
        if (measured.golden != null) {
            checks.golden(measured.golden);
        }
        if (measured.latency == null) {
            String reason = failure == null ? "It was not timed." : failure.getMessage();
            checks.noLatency(bundle.budgets.maxLatencyUs, reason);
        } else {
            Timing timing = measured.timing;
            double median = timing.all().median();
            checks.latency(timing.medians(), median, bundle.budgets.maxLatencyUs, ends);
            checks.ram(measured.overallKb, bundle.budgets.maxRam);
        }
        return json.put("state", Probe.Snapshot.state(ends[0], ends[1]))
                .put("latency_us", measured.latency)
                .put(
                        "memory_kb",
                        Json.object()
                                .put("init", measured.initKb)
                                .put("overall", measured.overallKb)
                                .put("peak", LinuxFiles.statusKb("VmHWM"))
                                .build())
                .put("golden", measured.golden == null ? null : measured.golden.toJson())
                .put("checks", checks.toJson())
                .put("output_sha256", measured.outputSha256)
                .put("error", failure == null ? null : failure.toJson())
                .put("time", Clock.utc(clock))
                .build();
    }

    private static final class Measured {
        Timing timing;
        JSONObject latency;
        GoldenCheck golden;
        String outputSha256;
        Double initKb;
        Double overallKb;
    }

    private void measure(
            Bundle bundle,
            Bundle.Model model,
            Plan plan,
            Setting setting,
            String kernels,
            Probe.Snapshot[] ends,
            Measured measured)
            throws Failure {
        ModelFile file = ModelFile.open(bundle, model, ends[0].availableKb);
        Samples samples = Samples.of(bundle, model, ends[0].availableKb);
        ByteBuffer[] outputs = Samples.outputs(model);
        Double startKb = LinuxFiles.statusKb("VmRSS");
        long start = clock.nanos();
        try (Engine.Session session =
                engine.open(file.content, setting.threads, setting.xnnpack)) {
            double init = (clock.nanos() - start) / 1e3;
            measured.initKb = growth(startKb);
            check(session, model);
            Timing timing = new Timing(session, samples.inputs, outputs, clock, cancellation);
            timing.first();
            if (samples.outputs != null) {
                GoldenCheck golden = new GoldenCheck(model, engine.version(), kernels);
                for (int i = 0; i < samples.inputs.size(); i++) {
                    cancellation.check();
                    session.reset();
                    session.run(samples.inputs.get(i), outputs);
                    golden.add(outputs, samples.outputs.get(i));
                }
                session.reset();
                measured.outputSha256 = golden.outputSha256();
                measured.golden = golden;
            }
            timing.run(plan, share -> tell(model, setting, share, false));
            measured.overallKb = growth(startKb);
            measured.timing = timing;
            measured.latency = timing.toJson(init);
        }
    }

    /** Compares the loaded model's tensors with the bundle's. */
    private static void check(Engine.Session session, Bundle.Model model) throws Failure {
        check(model, "inputs", session.inputs(), model.inputs.size());
        check(model, "outputs", session.outputs(), model.outputs.size());
        for (int i = 0; i < session.inputs(); i++) {
            check(
                    model,
                    "bytes in input " + i,
                    session.inputBytes(i),
                    model.inputs.get(i).bytes());
        }
        for (int i = 0; i < session.outputs(); i++) {
            check(
                    model,
                    "bytes in output " + i,
                    session.outputBytes(i),
                    model.outputs.get(i).bytes());
        }
    }

    private static void check(Bundle.Model model, String what, int found, int wanted)
            throws Failure {
        if (found != wanted) {
            throw new Failure(
                    Failure.Code.BUNDLE,
                    model.file + " has " + found + " " + what + ", but bundle.json says " + wanted
                            + ".");
        }
    }

    private static Double growth(Double startKb) {
        Double now = LinuxFiles.statusKb("VmRSS");
        return startKb == null || now == null ? null : Double.valueOf(Math.max(0, now - startKb));
    }

    private void tell(Bundle.Model model, Setting setting, double part, boolean always) {
        long now = clock.nanos();
        if (always || now - lastProgress >= PROGRESS_NANOS) {
            lastProgress = now;
            listener.onProgress(
                    new Progress(
                            setting.step,
                            setting.steps,
                            model.kind,
                            setting.threads,
                            setting.xnnpack,
                            part));
        }
    }

    private static JSONObject describe(Bundle.Model model) {
        return Json.object()
                .put("sha256", model.sha256)
                .put("bytes", model.bytes)
                .put("kind", model.kind)
                .put("file", model.file)
                .build();
    }

    private JSONObject runtime(Setting setting, String kernels) {
        return Json.object()
                .put("name", engine.name())
                .put("version", engine.version())
                .put("api", engine.api())
                .put("delegate", setting.xnnpack ? "XNNPACK" : null)
                .put("kernels", kernels)
                .build();
    }

    private static JSONObject config(Bundle.Model model, Plan plan, Setting setting) {
        return Json.object()
                .put("threads", setting.threads)
                .put("xnnpack", setting.xnnpack)
                .put("affinity", null)
                .put("warmup", plan.warmup)
                .put("runs", plan.runs)
                .put("min_s", plan.minSeconds)
                .put("repeats", Math.min(plan.repeats, plan.runs))
                .put("processes", 1)
                .put("input", model.golden == null ? "random" : "golden")
                .build();
    }

    /** Returns the text of a result file. */
    public static String toText(JSONObject result) {
        try {
            return result.toString(1) + "\n";
        } catch (JSONException e) {
            throw new IllegalStateException(e);
        }
    }
}
