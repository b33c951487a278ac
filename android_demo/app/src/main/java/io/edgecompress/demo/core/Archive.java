package io.edgecompress.demo.core;

import java.io.BufferedInputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.HashSet;
import java.util.Locale;
import java.util.Set;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipInputStream;

/** Unpacks a bundle that came as a .zip. */
final class Archive {
    private static final int MOST_ENTRIES = 2000;
    private static final long MOST_BYTES = 2L << 30;
    // Kept free for the rest of the device.
    private static final long RESERVE = 32L << 20;

    private Archive() {}

    /** Unpacks into an empty folder; whatever is wrong leaves a Failure and files to delete. */
    static void unpack(InputStream stream, File folder) throws Failure {
        long left = Math.min(MOST_BYTES, Math.max(0, folder.getUsableSpace() - RESERVE));
        int entries = 0;
        Set<String> names = new HashSet<>();
        try (ZipInputStream zip = new ZipInputStream(new BufferedInputStream(stream))) {
            for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                if (++entries > MOST_ENTRIES) {
                    throw bad("The .zip has more than " + MOST_ENTRIES + " entries.");
                }
                String name = entry.getName();
                if (entry.isDirectory() && name.endsWith("/")) {
                    name = name.substring(0, name.length() - 1);
                }
                File file = Paths.resolve(folder, name, Failure.Code.BUNDLE, "The .zip entry");
                if (entry.isDirectory()) {
                    makeFolder(file);
                    continue;
                }
                if (!names.add(name.toLowerCase(Locale.ROOT))) {
                    throw bad("The .zip has the entry " + name + " twice.");
                }
                makeFolder(file.getParentFile());
                try (FileOutputStream out = new FileOutputStream(file)) {
                    left -= Disk.copy(zip, out, left);
                }
            }
        } catch (ZipException | IllegalArgumentException e) {
            // IllegalArgumentException: a name that is no UTF-8.
            throw bad("The .zip is damaged: " + e.getMessage() + ".");
        } catch (IOException e) {
            throw new Failure(
                    Failure.Code.STORAGE, "Cannot unpack the .zip: " + e.getMessage() + ".");
        }
        if (entries == 0) {
            throw bad("The file is not a .zip, or it is empty.");
        }
    }

    private static void makeFolder(File folder) throws IOException {
        if (!folder.isDirectory() && !folder.mkdirs()) {
            throw new IOException("the folder " + folder.getName() + " cannot be made");
        }
    }

    private static Failure bad(String message) {
        return new Failure(Failure.Code.BUNDLE, message);
    }
}
