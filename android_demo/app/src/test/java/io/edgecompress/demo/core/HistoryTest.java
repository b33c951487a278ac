package io.edgecompress.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.File;
import java.nio.file.Files;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class HistoryTest {
    @Rule public final TemporaryFolder temporary = new TemporaryFolder();

    private static JSONObject result() {
        return new BenchmarkRun(
                        new FakeEngine(new FakeEngine.Ticker(), 1),
                        new HostProbe(),
                        new FakeEngine.Ticker(),
                        "measured_host",
                        "1")
                .failed(new Failure(Failure.Code.BUNDLE, "broken"));
    }

    @Test
    public void storesUnderNewNames() throws Exception {
        History history = new History(new File(temporary.getRoot(), "a/b"));
        File first = history.store(result(), null);
        File second = history.store(result(), null);
        assertEquals("20231114T221320Z.json", first.getName());
        assertEquals("20231114T221320Z-2.json", second.getName());
        assertEquals(2, history.list().size());
        assertEquals("broken", Result.read(first).error);
        assertEquals("error", Result.read(first).verdict());
        // Nothing half-written stays behind.
        assertEquals(2, history.folder().list().length);
    }

    @Test
    public void namesAreNoPaths() throws Exception {
        History history = new History(temporary.getRoot());
        for (String name : new String[] {"../x", "/x", "a/b", "..", "", ".x", "a\\b"}) {
            try {
                history.store(result(), name);
                fail(name);
            } catch (Failure e) {
                assertEquals(Failure.Code.ARGUMENTS, e.code);
            }
        }
        assertArrayEquals(new String[0], temporary.getRoot().list());
        history.store(result(), "Lauf 1 für Ünal.json");
        assertEquals(1, history.list().size());
    }

    @Test
    public void damagedResultsAreReported() throws Exception {
        File file = temporary.newFile("x.json");
        for (String text : new String[] {"", "{", "[]", "{}", "{\"schema\": 1}"}) {
            Files.write(file.toPath(), text.getBytes("UTF-8"));
            try {
                Result.read(file);
                fail(text);
            } catch (Failure e) {
                assertEquals(Failure.Code.STORAGE, e.code);
            }
        }
        Files.write(
                file.toPath(),
                "{\"schema\": \"edgecompress.measurement/1\", \"measurements\": [1, {}]}".getBytes());
        Result result = Result.read(file);
        assertEquals(1, result.measurements.size());
        assertEquals("error", result.verdict());
    }

    @Test
    public void aFolderThatCannotBeWrittenIsAFailure() throws Exception {
        File file = temporary.newFile("file");
        try {
            new History(new File(file, "below")).store(result(), null);
            fail();
        } catch (Failure e) {
            assertEquals(Failure.Code.STORAGE, e.code);
            assertTrue(e.getMessage().startsWith("Cannot write "));
        }
    }

    @Test
    public void formats() {
        assertEquals("7.31 µs", Format.time(7.31));
        assertEquals("123 µs", Format.time(123.4));
        assertEquals("1.23 ms", Format.time(1234));
        assertEquals("2.00 s", Format.time(2e6));
        assertEquals("512 B", Format.size(512));
        assertEquals("7.89 KiB", Format.size(8080));
        assertEquals("21.3 KiB", Format.size(21776));
        assertEquals("4.0 %", Format.percent(4));
        assertEquals("20 s", Format.span(20.4));
        assertEquals("3 min", Format.span(180));
    }
}
