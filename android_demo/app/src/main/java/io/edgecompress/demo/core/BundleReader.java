package io.edgecompress.demo.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** Reads bundle.json; whatever is wrong with it ends in a Failure that names the place. */
public final class BundleReader {
    private static final long LARGEST = 16L << 20;
    private static final int MOST_MODELS = 64;

    private BundleReader() {}

    /** Reads the bundle in a folder. */
    public static Bundle read(File folder) throws Failure {
        File file = new File(folder, Bundle.FILE);
        if (!file.isFile()) {
            throw bad("There is no " + Bundle.FILE + " in " + folder + ".");
        }
        byte[] content;
        try {
            content = Disk.read(file, LARGEST);
        } catch (IOException e) {
            throw new Failure(
                    Failure.Code.STORAGE, "Cannot read " + file + ": " + e.getMessage() + ".");
        }
        JSONObject root;
        try {
            root = new JSONObject(new String(content, StandardCharsets.UTF_8));
        } catch (JSONException e) {
            throw bad("bundle.json is no JSON: " + e.getMessage() + ".");
        }
        return new BundleReader().bundle(folder, Disk.sha256(content), root);
    }

    private Bundle bundle(File folder, String sha256, JSONObject root) throws Failure {
        String schema = text(root, "schema", "");
        if (!schema.equals(Bundle.SCHEMA)) {
            throw bad(
                    "bundle.json has the schema " + schema + "; this app reads " + Bundle.SCHEMA
                            + ". Export again, or take another version of the app.");
        }
        String name = Failure.oneLine(text(root, "name", ""));
        JSONArray entries = array(root, "models", "", 1);
        if (entries.length() > MOST_MODELS) {
            throw bad("bundle.json has more than " + MOST_MODELS + " models.");
        }
        List<Bundle.Model> models = new ArrayList<>();
        Set<String> files = new HashSet<>();
        for (int i = 0; i < entries.length(); i++) {
            Bundle.Model model = model(folder, entry(entries, i, "models"), "models[" + i + "].");
            if (!files.add(model.file)) {
                throw bad("bundle.json names " + model.file + " twice.");
            }
            models.add(model);
        }
        List<String> labels = null;
        if (!root.isNull("labels")) {
            labels = texts(root, "labels", "");
        }
        return new Bundle(
                folder,
                name,
                root.isNull("target") ? null : text(root, "target", ""),
                sha256,
                models,
                labels,
                budgets(object(root, "budgets", "")));
    }

    private Bundle.Model model(File folder, JSONObject entry, String where) throws Failure {
        String file = path(folder, text(entry, "file", where), where + "file");
        long bytes = count(entry, "bytes", where, 1);
        if (bytes > Integer.MAX_VALUE) {
            throw bad(where + "bytes is more than a .tflite file can have.");
        }
        String runtime = text(entry, "runtime", where);
        Bundle.Runtime needed;
        try {
            needed = Bundle.Runtime.valueOf(runtime.toUpperCase(Locale.ROOT));
        } catch (IllegalArgumentException e) {
            throw bad(where + "runtime is " + runtime + "; this app knows litert, lce and tflm.");
        }
        List<Tensor> inputs = tensors(entry, "inputs", where);
        List<Tensor> outputs = tensors(entry, "outputs", where);
        Bundle.Golden golden = null;
        if (!entry.isNull("golden")) {
            JSONObject found = object(entry, "golden", where);
            golden = golden(folder, found, inputs.size(), outputs.size(), where + "golden.");
        }
        return new Bundle.Model(
                file,
                Failure.oneLine(text(entry, "kind", where)),
                hash(text(entry, "sha256", where), where + "sha256"),
                bytes,
                needed,
                inputs,
                outputs,
                golden);
    }

    private Bundle.Golden golden(
            File folder, JSONObject entry, int inputs, int outputs, String where) throws Failure {
        Map<String, String> hashes = new HashMap<>();
        JSONObject stored = object(entry, "sha256", where);
        for (Iterator<String> keys = stored.keys(); keys.hasNext(); ) {
            String key = keys.next();
            hashes.put(key, hash(text(stored, key, where + "sha256."), where + "sha256." + key));
        }
        List<String> in = goldenFiles(folder, entry, "inputs", inputs, hashes, where);
        List<String> out = goldenFiles(folder, entry, "outputs", outputs, hashes, where);
        long samples = count(entry, "samples", where, 1);
        if (samples > 100_000) {
            throw bad(where + "samples is more than 100000.");
        }
        Double tolerance = positive(entry, "tolerance", where, true);
        return new Bundle.Golden(
                (int) samples,
                in,
                out,
                hashes,
                text(entry, "engine", where),
                text(entry, "engine_version", where),
                text(entry, "kernels", where),
                (int) Math.min(count(entry, "tolerance_steps", where, 0), Integer.MAX_VALUE),
                tolerance == null ? 0 : tolerance);
    }

    private List<String> goldenFiles(
            File folder,
            JSONObject entry,
            String key,
            int wanted,
            Map<String, String> hashes,
            String where)
            throws Failure {
        List<String> files = texts(entry, key, where);
        if (files.size() != wanted) {
            throw bad(
                    where + key + " has " + files.size() + " files, but the model has " + wanted
                            + " " + key + ".");
        }
        for (String file : files) {
            path(folder, file, where + key);
            if (!hashes.containsKey(file)) {
                throw bad(where + "sha256 lacks " + file + ".");
            }
        }
        return files;
    }

    private List<Tensor> tensors(JSONObject entry, String key, String where) throws Failure {
        JSONArray entries = array(entry, key, where, 1);
        List<Tensor> tensors = new ArrayList<>();
        for (int i = 0; i < entries.length(); i++) {
            String at = where + key + "[" + i + "].";
            JSONObject tensor = entry(entries, i, where + key);
            JSONArray dimensions = array(tensor, "shape", at, 0);
            int[] shape = new int[dimensions.length()];
            for (int d = 0; d < shape.length; d++) {
                Object size = dimensions.opt(d);
                if (!(size instanceof Integer) || (Integer) size < 1) {
                    throw bad(at + "shape holds " + size + ", which is not a size.");
                }
                shape[d] = (Integer) size;
            }
            String name = text(tensor, "dtype", at);
            Tensor.Type type;
            try {
                type = Tensor.Type.valueOf(name.toUpperCase(Locale.ROOT));
            } catch (IllegalArgumentException e) {
                throw bad(at + "dtype is " + name + ", which this app does not know.");
            }
            if (Tensor.bytes(shape, type) > Integer.MAX_VALUE) {
                throw bad(at + "shape is more than 2 GiB.");
            }
            Integer zeroPoint = null;
            if (!tensor.isNull("zero_point")) {
                Object value = tensor.opt("zero_point");
                if (!(value instanceof Integer)) {
                    throw bad(at + "zero_point must be a whole number. Got " + value + ".");
                }
                zeroPoint = (Integer) value;
            }
            Double scale = positive(tensor, "scale", at, false);
            if ((scale == null) != (zeroPoint == null)) {
                throw bad(at + "scale and zero_point go together.");
            }
            tensors.add(new Tensor(text(tensor, "name", at), shape, type, scale, zeroPoint));
        }
        return tensors;
    }

    private Bundle.Budgets budgets(JSONObject entry) throws Failure {
        String where = "budgets.";
        return new Bundle.Budgets(
                positive(entry, "max_latency_us", where, false),
                positive(entry, "max_file_size", where, false),
                positive(entry, "max_ram", where, false),
                positive(entry, "min_accuracy", where, true));
    }

    private static String path(File folder, String path, String where) throws Failure {
        Paths.resolve(folder, path, Failure.Code.BUNDLE, "bundle.json: " + where);
        return path;
    }

    private static String hash(String text, String where) throws Failure {
        if (!text.matches("[0-9a-f]{64}")) {
            throw bad(where + " must be 64 hexadecimal digits. Got " + text + ".");
        }
        return text;
    }

    private static String text(JSONObject object, String key, String where) throws Failure {
        Object value = object.opt(key);
        if (!(value instanceof String)) {
            throw wrong(where + key, "text", value);
        }
        return (String) value;
    }

    private static List<String> texts(JSONObject object, String key, String where) throws Failure {
        JSONArray array = array(object, key, where, 0);
        List<String> texts = new ArrayList<>();
        for (int i = 0; i < array.length(); i++) {
            Object value = array.opt(i);
            if (!(value instanceof String)) {
                throw wrong(where + key + "[" + i + "]", "text", value);
            }
            texts.add((String) value);
        }
        return texts;
    }

    private static long count(JSONObject object, String key, String where, long least)
            throws Failure {
        Object value = object.opt(key);
        if (!(value instanceof Integer || value instanceof Long)
                || ((Number) value).longValue() < least) {
            throw wrong(where + key, "a whole number of at least " + least, value);
        }
        return ((Number) value).longValue();
    }

    /** Returns a positive number (with `zero`: or 0), or null where there is none. */
    private static Double positive(JSONObject object, String key, String where, boolean zero)
            throws Failure {
        if (object.isNull(key)) {
            return null;
        }
        Object value = object.opt(key);
        double number = value instanceof Number ? ((Number) value).doubleValue() : Double.NaN;
        if (!(number > 0 || (zero && number == 0)) || Double.isInfinite(number)) {
            throw wrong(where + key, zero ? "a number of at least 0" : "a positive number", value);
        }
        return number;
    }

    private static JSONObject object(JSONObject object, String key, String where) throws Failure {
        Object value = object.opt(key);
        if (!(value instanceof JSONObject)) {
            throw wrong(where + key, "an object", value);
        }
        return (JSONObject) value;
    }

    private static JSONObject entry(JSONArray array, int index, String where) throws Failure {
        Object value = array.opt(index);
        if (!(value instanceof JSONObject)) {
            throw wrong(where + "[" + index + "]", "an object", value);
        }
        return (JSONObject) value;
    }

    private static JSONArray array(JSONObject object, String key, String where, int least)
            throws Failure {
        Object value = object.opt(key);
        if (!(value instanceof JSONArray) || ((JSONArray) value).length() < least) {
            throw wrong(where + key, "a list" + (least > 0 ? " that is not empty" : ""), value);
        }
        return (JSONArray) value;
    }

    private static Failure wrong(String what, String rule, Object got) {
        String shown = got == null ? "nothing" : String.valueOf(got);
        if (shown.length() > 60) {
            shown = shown.substring(0, 60) + "...";
        }
        return bad("bundle.json: " + what + " must be " + rule + ". Got " + shown + ".");
    }

    private static Failure bad(String message) {
        return new Failure(Failure.Code.BUNDLE, message);
    }
}
