import io.edgecompress.demo.core.Bundle;
import io.edgecompress.demo.core.BundleReader;
import io.edgecompress.demo.core.Disk;
import io.edgecompress.demo.core.Failure;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Copies an export into a folder: bundle.json and the files that it names, as the app reads them.
 *
 * <p>Run by build_apk.sh; arguments: FOLDER TARGET.
 */
final class CopyBundle {
    private static final long LARGEST = Integer.MAX_VALUE - 8;

    private CopyBundle() {}

    public static void main(String[] args) {
        try {
            copy(new File(args[0]), new File(args[1]).toPath());
        } catch (Failure | IOException | OutOfMemoryError e) {
            String reason = e instanceof Failure ? e.getMessage() : e.toString();
            System.err.println("android_demo: --bundle " + args[0] + ": " + reason);
            System.exit(1);
        }
    }

    private static void copy(File folder, Path target) throws Failure, IOException {
        Bundle bundle = BundleReader.read(folder);
        Map<String, String> files = new LinkedHashMap<>();
        files.put(Bundle.FILE, bundle.sha256);
        for (Bundle.Model model : bundle.models) {
            files.put(model.file, model.sha256);
            if (model.golden != null) {
                for (String file : model.golden.inputs) {
                    files.put(file, model.golden.sha256.get(file));
                }
                for (String file : model.golden.outputs) {
                    files.put(file, model.golden.sha256.get(file));
                }
            }
        }
        for (Map.Entry<String, String> entry : files.entrySet()) {
            String path = entry.getKey();
            if (("/" + path).contains("/.")) {
                throw bad("an APK holds no file whose name starts with a dot. Rename " + path + ".");
            }
            File file = new File(folder, path);
            if (!file.isFile()) {
                throw bad(path + ", which bundle.json names, is missing.");
            }
            if (!Disk.sha256(Disk.read(file, LARGEST)).equals(entry.getValue())) {
                throw bad(path + " is another file than bundle.json names. Export again.");
            }
            Path copy = target.resolve(path);
            Files.createDirectories(copy.getParent());
            Files.copy(file.toPath(), copy, StandardCopyOption.REPLACE_EXISTING);
        }
    }

    private static Failure bad(String message) {
        return new Failure(Failure.Code.BUNDLE, message);
    }
}
