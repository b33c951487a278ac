package io.edgecompress.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.File;
import java.nio.file.Files;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class BundleReaderTest {
    @Rule public final TemporaryFolder temporary = new TemporaryFolder();

    private File folder;

    private interface Edit {
        void apply(JSONObject json) throws Exception;
    }

    @Before
    public void copy() throws Exception {
        folder = TestBundles.copy(new File(temporary.getRoot(), "Zahlen für später ✓"));
    }

    private static JSONObject model(JSONObject json) throws Exception {
        return json.getJSONArray("models").getJSONObject(0);
    }

    private static JSONObject input(JSONObject json) throws Exception {
        return model(json).getJSONArray("inputs").getJSONObject(0);
    }

    private void refuses(String message, Edit edit) throws Exception {
        JSONObject json = TestBundles.json(TestBundles.SHIPPED);
        edit.apply(json);
        TestBundles.write(folder, json);
        try {
            BundleReader.read(folder);
        } catch (Failure e) {
            assertTrue(e.getMessage(), e.getMessage().contains(message));
            assertFalse(e.getMessage().contains("\n"));
            assertEquals(Failure.Code.BUNDLE, e.code);
            return;
        }
        fail("not refused: " + message);
    }

    @Test
    public void readsTheShippedBundle() throws Exception {
        Bundle bundle = BundleReader.read(folder);
        assertEquals("Digits", bundle.name);
        assertEquals(3, bundle.models.size());
        assertEquals(10, bundle.labels.size());
        Bundle.Model int8 = bundle.models.get(1);
        assertEquals("int8", int8.kind);
        assertEquals(784, int8.inputs.get(0).bytes());
        assertEquals(8, int8.golden.samples);
        assertEquals(0.0, int8.golden.tolerance, 0);
        assertEquals(1000.0, bundle.budgets.maxLatencyUs, 0);
        assertEquals(null, bundle.budgets.maxRam);
    }

    @Test
    public void namesWithSpacesAndOtherLettersWork() throws Exception {
        JSONObject json = TestBundles.json(folder);
        String name = "Modell für später ü 模型.tflite";
        assertTrue(
                new File(folder, model(json).getString("file")).renameTo(new File(folder, name)));
        model(json).put("file", name);
        TestBundles.write(folder, json);
        Bundle bundle = BundleReader.read(folder);
        ModelFile.open(bundle, bundle.models.get(0), null);
    }

    @Test
    public void refusesWhatIsMissingOrNoJson() throws Exception {
        assertTrue(new File(folder, Bundle.FILE).delete());
        try {
            BundleReader.read(folder);
            fail();
        } catch (Failure e) {
            assertTrue(e.getMessage().startsWith("There is no bundle.json in "));
        }
        for (String text : new String[] {"", "[]", "{\"schema\": \"edgecompress.bundle/1\"", "\0\1"}) {
            Files.write(new File(folder, Bundle.FILE).toPath(), text.getBytes("UTF-8"));
            try {
                BundleReader.read(folder);
                fail(text);
            } catch (Failure e) {
                assertEquals(Failure.Code.BUNDLE, e.code);
            }
        }
    }

    @Test
    public void refusesPathsThatLeaveTheFolder() throws Exception {
        String[] paths = {
            "../x.tflite", "/etc/passwd", "a/../../x", "C:/x", "a\\b", "", "./x", "a//b", "a/", ".."
        };
        for (String path : paths) {
            refuses("models[0].file \"" + path + "\"", json -> model(json).put("file", path));
            refuses(
                    "golden.inputs \"" + path + "\"",
                    json ->
                            model(json)
                                    .getJSONObject("golden")
                                    .put("inputs", new JSONArray().put(path)));
        }
    }

    @Test
    public void refusesLinksThatLeaveTheFolder() throws Exception {
        File outside = temporary.newFile("outside.tflite");
        File link = new File(folder, "link.tflite");
        Files.createSymbolicLink(link.toPath(), outside.toPath());
        refuses("leads outside its folder", json -> model(json).put("file", "link.tflite"));
    }

    @Test
    public void refusesWhatIsNotOfTheSchema() throws Exception {
        refuses("has the schema edgecompress.bundle/2", j -> j.put("schema", "edgecompress.bundle/2"));
        refuses("schema must be text. Got nothing", j -> j.remove("schema"));
        refuses("name must be text. Got 5", j -> j.put("name", 5));
        refuses("models must be a list", j -> j.put("models", new JSONObject()));
        refuses("models must be a list", j -> j.put("models", new JSONArray()));
        refuses("models[0] must be an object", j -> j.put("models", new JSONArray().put(1)));
        refuses(
                "names " + "digits_int8-pruned.tflite twice",
                j -> j.getJSONArray("models").put(new JSONObject(model(j).toString())));
        refuses("models[0].bytes must be a whole number", j -> model(j).put("bytes", 1.5));
        refuses("models[0].bytes must be a whole number", j -> model(j).put("bytes", 0));
        refuses("bytes is more than", j -> model(j).put("bytes", 5_000_000_000L));
        refuses("sha256 must be 64", j -> model(j).put("sha256", "ABC"));
        refuses("runtime is onnx", j -> model(j).put("runtime", "onnx"));
        refuses("inputs must be a list", j -> model(j).put("inputs", new JSONArray()));
        refuses("shape holds -1", j -> input(j).put("shape", new JSONArray("[1, -1]")));
        refuses("shape holds 2.5", j -> input(j).put("shape", new JSONArray("[2.5]")));
        refuses("more than 2 GiB", j -> input(j).put("shape", new JSONArray("[65536, 65536]")));
        refuses("dtype is complex64", j -> input(j).put("dtype", "complex64"));
        refuses("scale must be a positive", j -> input(j).put("scale", -1));
        refuses("scale and zero_point go together", j -> input(j).put("scale", JSONObject.NULL));
        refuses("zero_point must be", j -> input(j).put("zero_point", "x"));
        refuses("labels[0] must be text", j -> j.put("labels", new JSONArray().put(1)));
        refuses("budgets must be an object", j -> j.remove("budgets"));
        refuses(
                "budgets.max_latency_us must be a positive",
                j -> j.getJSONObject("budgets").put("max_latency_us", 0));
        refuses(
                "golden.samples must be",
                j -> model(j).getJSONObject("golden").put("samples", 0));
        refuses(
                "inputs has 0 files, but the model has 1",
                j -> model(j).getJSONObject("golden").put("inputs", new JSONArray()));
        refuses(
                "sha256 lacks",
                j -> model(j).getJSONObject("golden").put("sha256", new JSONObject()));
    }

    @Test
    public void longNamesAndLineBreaksStayOneLine() throws Exception {
        JSONObject json = TestBundles.json(folder).put("name", "a\nb\tc");
        TestBundles.write(folder, json);
        assertEquals("a b c", BundleReader.read(folder).name);
    }
}
