package io.edgecompress.demo.core;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;

/** The runtime's native library where no Android loads it: taken from a jar on the class path. */
public final class HostLibrary {
    private static final String RESOURCE = "/native/lib/libtensorflowlite_jni.so";

    private static boolean loaded;

    private HostLibrary() {}

    /** Loads the library; once for each class loader, from a file of its own. */
    public static synchronized void load() throws Failure {
        if (loaded) {
            return;
        }
        try (InputStream in = HostLibrary.class.getResourceAsStream(RESOURCE)) {
            if (in == null) {
                throw new IOException(RESOURCE + " is not on the class path");
            }
            File file = File.createTempFile("libtensorflowlite_jni", ".so");
            file.deleteOnExit();
            try (FileOutputStream out = new FileOutputStream(file)) {
                Disk.copy(in, out, Integer.MAX_VALUE);
            }
            System.load(file.getPath());
            loaded = true;
        } catch (IOException | UnsatisfiedLinkError e) {
            throw new Failure(
                    Failure.Code.ENGINE, "The runtime's library does not load: " + e.getMessage());
        }
    }
}
