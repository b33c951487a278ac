package io.edgecompress.demo.core;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.json.JSONException;
import org.json.JSONObject;

/** Copies of the shipped bundle, whole and damaged. */
public final class TestBundles {
    public static final File SHIPPED = new File("app/src/main/assets/demo");
    public static final String INT8 = "digits_int8.tflite";

    private TestBundles() {}

    /** Copies the shipped bundle into a folder. */
    public static File copy(File target) throws IOException {
        return copy(SHIPPED, target);
    }

    /** Copies a folder. */
    public static File copy(File source, File target) throws IOException {
        try (Stream<Path> paths = Files.walk(source.toPath())) {
            for (Path path : (Iterable<Path>) paths::iterator) {
                Path to = target.toPath().resolve(source.toPath().relativize(path).toString());
                if (Files.isDirectory(path)) {
                    Files.createDirectories(to);
                } else {
                    Files.copy(path, to);
                }
            }
        }
        return target;
    }

    public static JSONObject json(File folder) throws IOException, JSONException {
        byte[] content = Files.readAllBytes(new File(folder, Bundle.FILE).toPath());
        return new JSONObject(new String(content, StandardCharsets.UTF_8));
    }

    public static void write(File folder, JSONObject json) throws IOException {
        Files.write(
                new File(folder, Bundle.FILE).toPath(),
                json.toString().getBytes(StandardCharsets.UTF_8));
    }

    /** Puts another file in a model's place; bundle.json is told its size and SHA-256. */
    public static void replaceModel(File folder, int model, byte[] content)
            throws IOException, JSONException {
        JSONObject json = json(folder);
        JSONObject entry = json.getJSONArray("models").getJSONObject(model);
        entry.put("bytes", content.length).put("sha256", Disk.sha256(content));
        Files.write(new File(folder, entry.getString("file")).toPath(), content);
        write(folder, json);
    }

    /** Returns a .zip of a folder, each entry below `prefix`. */
    public static byte[] zip(File folder, String prefix) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (ZipOutputStream zip = new ZipOutputStream(out);
                Stream<Path> paths = Files.walk(folder.toPath())) {
            for (Path path : (Iterable<Path>) paths::iterator) {
                if (Files.isRegularFile(path)) {
                    zip.putNextEntry(
                            new ZipEntry(prefix + folder.toPath().relativize(path).toString()));
                    zip.write(Files.readAllBytes(path));
                    zip.closeEntry();
                }
            }
        }
        return out.toByteArray();
    }

    /** Returns a .zip with one entry. */
    public static byte[] zipOf(String name, byte[] content) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (ZipOutputStream zip = new ZipOutputStream(out)) {
            zip.putNextEntry(new ZipEntry(name));
            zip.write(content);
            zip.closeEntry();
        }
        return out.toByteArray();
    }
}
