package io.edgecompress.demo.core;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;

/** A model's bytes, mapped and checked against what the bundle says of them. */
final class ModelFile {
    // Weights are mapped, but XNNPACK keeps a packed copy of them.
    private static final double COPIES = 1.2;

    final ByteBuffer content;

    private ModelFile(ByteBuffer content) {
        this.content = content;
    }

    /**
     * Opens and checks a model.
     *
     * @param availableKb Free memory in KiB, or null where the system does not tell.
     */
    static ModelFile open(Bundle bundle, Bundle.Model model, Long availableKb) throws Failure {
        if (model.runtime != Bundle.Runtime.LITERT) {
            throw FlatFile.needs(model.file, "the " + model.kind + " file", model.runtime.title);
        }
        ByteBuffer content = checked(bundle, model.file, model.bytes, model.sha256);
        if (availableKb != null && model.bytes * COPIES > availableKb * 1024.0) {
            throw new Failure(
                    Failure.Code.MEMORY,
                    model.file + " has " + model.bytes / 1024 + " KiB, but only " + availableKb
                            + " KiB of memory are free.");
        }
        FlatFile.read(content, model.file).checkOperators(model.file);
        return new ModelFile(content);
    }

    /** Maps a file of the bundle and compares its size and SHA-256. */
    static ByteBuffer checked(Bundle bundle, String path, long bytes, String sha256)
            throws Failure {
        File file = Paths.resolve(bundle.folder, path, Failure.Code.BUNDLE, "The file");
        if (!file.isFile()) {
            throw new Failure(Failure.Code.BUNDLE, path + " is missing from the bundle.");
        }
        if (file.length() != bytes) {
            throw new Failure(
                    Failure.Code.BUNDLE,
                    path + " has " + file.length() + " bytes instead of " + bytes + ".");
        }
        ByteBuffer content;
        try {
            content = Disk.map(file);
        } catch (IOException e) {
            throw new Failure(
                    Failure.Code.STORAGE, "Cannot read " + path + ": " + e.getMessage() + ".");
        }
        String found = Disk.sha256(content);
        if (!found.equals(sha256)) {
            throw new Failure(
                    Failure.Code.BUNDLE,
                    path + " is another file than the bundle names: its SHA-256 is "
                            + found.substring(0, 12) + "... instead of " + sha256.substring(0, 12)
                            + "....");
        }
        return content;
    }
}
