package io.edgecompress.demo.core;

import java.io.File;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** A folder of bundles, one folder each. */
public final class BundleStore {
    private static final String PART = ".part-";

    /** A bundle, or why it is none. */
    public static final class Entry {
        public final File folder;
        /** Null where the bundle is damaged. */
        public final Bundle bundle;
        /** Null where it is fine. */
        public final Failure failure;

        Entry(File folder, Bundle bundle, Failure failure) {
            this.folder = folder;
            this.bundle = bundle;
            this.failure = failure;
        }

        /** Reads the bundle in a folder. */
        public static Entry of(File folder) {
            try {
                return new Entry(folder, BundleReader.read(folder), null);
            } catch (Failure e) {
                return new Entry(folder, null, e);
            }
        }
    }

    private final File root;

    public BundleStore(File root) {
        this.root = root;
    }

    /** Returns the bundles, by name of their folders; damaged ones with their failure. */
    public List<Entry> list() {
        List<Entry> entries = new ArrayList<>();
        File[] folders = root.listFiles();
        if (folders != null) {
            Arrays.sort(folders);
            for (File folder : folders) {
                if (folder.isDirectory() && !folder.getName().startsWith(".")) {
                    entries.add(Entry.of(folder));
                }
            }
        }
        return entries;
    }

    /**
     * Unpacks a .zip, checks the bundle in it and adds it.
     *
     * <p>bundle.json is at the top of the .zip or in its only folder. Nothing is added, and nothing
     * that was there is lost, where anything is wrong.
     *
     * @param name Name of the .zip, for the folder.
     */
    public Entry add(InputStream zip, String name) throws Failure {
        if (!root.isDirectory() && !root.mkdirs()) {
            throw new Failure(Failure.Code.STORAGE, "The folder " + root + " cannot be made.");
        }
        File part = new File(root, PART + System.nanoTime());
        if (!part.mkdir()) {
            throw new Failure(Failure.Code.STORAGE, "Cannot write into " + root + ".");
        }
        try {
            Archive.unpack(zip, part);
            File found = locate(part);
            BundleReader.read(found);
            File target = free(name);
            if (!found.renameTo(target)) {
                throw new Failure(Failure.Code.STORAGE, "Cannot write " + target + ".");
            }
            return Entry.of(target);
        } finally {
            Disk.deleteTree(part);
        }
    }

    private static File locate(File part) {
        File[] children = part.listFiles();
        boolean single = children != null && children.length == 1 && children[0].isDirectory();
        boolean nested = single && !new File(part, Bundle.FILE).isFile();
        return nested ? children[0] : part;
    }

    /** Returns a folder that does not exist yet. */
    private File free(String name) {
        String base = name.replaceAll("(?i)\\.zip$", "").replaceAll("[\\\\/:\\p{Cntrl}]", "_").trim();
        base = base.replaceAll("^\\.+", "");
        if (base.isEmpty()) {
            base = "bundle";
        }
        base = base.length() > 60 ? base.substring(0, 60) : base;
        File file = new File(root, base);
        for (int i = 2; file.exists(); i++) {
            file = new File(root, base + " " + i);
        }
        return file;
    }
}
