package io.edgecompress.demo.core;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import org.json.JSONObject;

/** The folder of result files, newest first. */
public final class History {
    private static final String SUFFIX = ".json";

    private final File folder;

    public History(File folder) {
        this.folder = folder;
    }

    public File folder() {
        return folder;
    }

    /** Stores a result under a new name, or under `name` where it is given. */
    public File store(JSONObject result, String name) throws Failure {
        File file = name == null ? fresh(result) : file(name);
        Disk.writeAtomic(file, BenchmarkRun.toText(result));
        return file;
    }

    /** Returns the file of a name; a name is not a path. */
    public File file(String name) throws Failure {
        if (name.indexOf('/') >= 0 || Paths.problem(name) != null || name.startsWith(".")) {
            throw new Failure(
                    Failure.Code.ARGUMENTS,
                    "result must be a plain file name such as run.json. Got \"" + name + "\".");
        }
        return new File(folder, name);
    }

    private File fresh(JSONObject result) {
        String time = Json.text(result, "time");
        String base = time == null ? "result" : time.replaceAll("[^0-9TZ]", "");
        File file = new File(folder, base + SUFFIX);
        for (int i = 2; file.exists(); i++) {
            file = new File(folder, base + "-" + i + SUFFIX);
        }
        return file;
    }

    /** Returns the result files, newest first. */
    public List<File> list() {
        File[] files =
                folder.listFiles(
                        (in, name) ->
                                name.toLowerCase(Locale.ROOT).endsWith(SUFFIX)
                                        && !name.startsWith("."));
        if (files == null) {
            return Collections.emptyList();
        }
        List<File> list = new ArrayList<>(Arrays.asList(files));
        Collections.sort(
                list,
                (a, b) -> {
                    int byTime = Long.compare(b.lastModified(), a.lastModified());
                    return byTime != 0 ? byTime : b.getName().compareTo(a.getName());
                });
        return list;
    }
}
