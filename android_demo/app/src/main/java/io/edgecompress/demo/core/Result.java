package io.edgecompress.demo.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** A result file, read for showing; what it lacks is null. */
public final class Result {
    private static final long LARGEST = 64L << 20;
    // From worst to best.
    private static final List<String> ORDER =
            Collections.unmodifiableList(
                    Arrays.asList("fail", "uncertain", "not_measured", "pass", "not_applicable"));

    public final JSONObject json;
    /** Name of the bundle, or null where none was read. */
    public final String name;
    public final String time;
    /** Why the run did not end, or null. */
    public final String error;
    public final List<Measurement> measurements = new ArrayList<>();

    public Result(JSONObject json) {
        this.json = json;
        name = Json.text(json.optJSONObject("bundle"), "name");
        time = Json.text(json, "time");
        error = Json.text(json.optJSONObject("error"), "message");
        JSONArray array = json.optJSONArray("measurements");
        for (int i = 0; array != null && i < array.length(); i++) {
            JSONObject entry = array.optJSONObject(i);
            if (entry != null) {
                measurements.add(new Measurement(entry));
            }
        }
    }

    /** Reads a result file. */
    public static Result read(File file) throws Failure {
        try {
            byte[] content = Disk.read(file, LARGEST);
            JSONObject json = new JSONObject(new String(content, StandardCharsets.UTF_8));
            if (!BenchmarkRun.SCHEMA.equals(Json.text(json, "schema"))) {
                throw new Failure(
                        Failure.Code.STORAGE, file.getName() + " is not a result of this app.");
            }
            return new Result(json);
        } catch (IOException | JSONException e) {
            throw new Failure(
                    Failure.Code.STORAGE,
                    "Cannot read " + file.getName() + ": " + e.getMessage() + ".");
        }
    }

    /** One measurement. */
    public static final class Measurement {
        public final JSONObject json;
        public final String kind;
        public final int threads;
        public final boolean xnnpack;
        /** Microseconds, or null. */
        public final Double median;
        public final String error;

        Measurement(JSONObject json) {
            this.json = json;
            String stored = Json.text(json.optJSONObject("model"), "kind");
            kind = stored == null ? "?" : stored;
            JSONObject config = json.optJSONObject("config");
            threads = config == null ? 0 : config.optInt("threads");
            xnnpack = config != null && config.optBoolean("xnnpack");
            median = latency("median");
            error = Json.text(json.optJSONObject("error"), "message");
        }

        /** Returns a field of latency_us, or null. */
        public Double latency(String field) {
            return Json.number(json.optJSONObject("latency_us"), field);
        }

        /** Returns the edges of the histogram's bins; empty where there is none. */
        public double[] edges() {
            return numbers("edges");
        }

        /** Returns how many samples each bin holds; empty where there is none. */
        public double[] counts() {
            return numbers("counts");
        }

        private double[] numbers(String key) {
            JSONObject latency = json.optJSONObject("latency_us");
            JSONObject histogram = latency == null ? null : latency.optJSONObject("histogram");
            JSONArray array = histogram == null ? null : histogram.optJSONArray(key);
            double[] values = new double[array == null ? 0 : array.length()];
            for (int i = 0; i < values.length; i++) {
                values[i] = array.optDouble(i, 0);
            }
            return values;
        }

        /** Returns whether the golden outputs matched, or null where there are none. */
        public Boolean goldenPassed() {
            JSONObject golden = json.optJSONObject("golden");
            Object passed = golden == null ? null : golden.opt("passed");
            return passed instanceof Boolean ? (Boolean) passed : null;
        }

        /** Returns the checks. */
        public List<JSONObject> checks() {
            List<JSONObject> found = new ArrayList<>();
            JSONArray array = json.optJSONArray("checks");
            for (int i = 0; array != null && i < array.length(); i++) {
                JSONObject check = array.optJSONObject(i);
                if (check != null) {
                    found.add(check);
                }
            }
            return found;
        }

        /** Returns the worst verdict of the checks. */
        public String verdict() {
            if (error != null) {
                return "not_measured";
            }
            String worst = "not_applicable";
            for (JSONObject check : checks()) {
                String verdict = Json.text(check, "verdict");
                if (ORDER.contains(verdict) && ORDER.indexOf(verdict) < ORDER.indexOf(worst)) {
                    worst = verdict;
                }
            }
            return worst;
        }
    }

    /**
     * Returns the fastest measurement of each kind of model whose golden outputs did not differ, in
     * the order of the bundle; a kind without one has its first measurement.
     */
    public List<Measurement> bestOfEachKind() {
        Map<String, Measurement> best = new LinkedHashMap<>();
        for (Measurement one : measurements) {
            Measurement before = best.get(one.kind);
            if (before == null || better(one, before)) {
                best.put(one.kind, one);
            }
        }
        return new ArrayList<>(best.values());
    }

    /** Returns the fastest measurement of the file that ships, which is the first; or null. */
    public Measurement main() {
        List<Measurement> best = bestOfEachKind();
        return best.isEmpty() ? null : best.get(0);
    }

    private static boolean better(Measurement one, Measurement other) {
        boolean right = one.median != null && !Boolean.FALSE.equals(one.goldenPassed());
        boolean otherRight = other.median != null && !Boolean.FALSE.equals(other.goldenPassed());
        if (right != otherRight) {
            return right;
        }
        return right && one.median < other.median;
    }

    /** Returns the verdict to show: of {@link #main}, or `error`. */
    public String verdict() {
        Measurement main = main();
        if (error != null || main == null || main.median == null) {
            return "error";
        }
        return main.verdict();
    }
}
