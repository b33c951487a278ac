package io.edgecompress.demo.core;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Locale;

/** Files: whole or not at all. */
public final class Disk {
    private static final int BLOCK = 1 << 16;

    private Disk() {}

    /** Writes a file under a temporary name, then gives it its own: readers never see a part. */
    public static void writeAtomic(File file, byte[] content) throws Failure {
        File folder = file.getAbsoluteFile().getParentFile();
        File part = new File(folder, "." + file.getName() + ".part");
        try {
            if (!folder.isDirectory() && !folder.mkdirs()) {
                throw new IOException("the folder " + folder + " cannot be made");
            }
            try (FileOutputStream out = new FileOutputStream(part)) {
                out.write(content);
                out.getFD().sync();
            }
            if (!part.renameTo(file)) {
                throw new IOException("it cannot be renamed");
            }
        } catch (IOException e) {
            part.delete();
            throw new Failure(
                    Failure.Code.STORAGE, "Cannot write " + file + ": " + e.getMessage() + ".");
        }
    }

    public static void writeAtomic(File file, String content) throws Failure {
        writeAtomic(file, content.getBytes(StandardCharsets.UTF_8));
    }

    /** Reads a file of at most `most` bytes. */
    public static byte[] read(File file, long most) throws IOException {
        if (file.length() > most) {
            throw new IOException("it has " + file.length() + " bytes, more than " + most);
        }
        try (InputStream in = new FileInputStream(file)) {
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            copy(in, out, most);
            return out.toByteArray();
        }
    }

    /** Copies a stream and returns its length; more than `most` bytes are an error. */
    public static long copy(InputStream in, OutputStream out, long most) throws IOException {
        byte[] block = new byte[BLOCK];
        long total = 0;
        for (int n = in.read(block); n >= 0; n = in.read(block)) {
            total += n;
            if (total > most) {
                throw new IOException("it has more than " + most + " bytes");
            }
            out.write(block, 0, n);
        }
        return total;
    }

    /** Maps a file into memory. */
    static MappedByteBuffer map(File file) throws IOException {
        try (FileInputStream in = new FileInputStream(file);
                FileChannel channel = in.getChannel()) {
            return channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size());
        }
    }

    /** Returns the SHA-256 of a buffer from its beginning, as 64 hexadecimal digits. */
    public static String sha256(ByteBuffer content) {
        MessageDigest digest = digest();
        ByteBuffer view = content.duplicate();
        Buffers.rewind(view);
        digest.update(view);
        return hex(digest);
    }

    public static String sha256(byte[] content) {
        return sha256(ByteBuffer.wrap(content));
    }

    static MessageDigest digest() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    static String hex(MessageDigest digest) {
        StringBuilder text = new StringBuilder();
        for (byte b : digest.digest()) {
            text.append(String.format(Locale.ROOT, "%02x", b & 0xff));
        }
        return text.toString();
    }

    /** Deletes a folder and all in it; a link is deleted, not followed. */
    public static void deleteTree(File file) {
        try {
            File parent = file.getAbsoluteFile().getParentFile().getCanonicalFile();
            boolean link = !file.getCanonicalFile().equals(new File(parent, file.getName()));
            File[] children = link ? null : file.listFiles();
            if (children != null) {
                for (File child : children) {
                    deleteTree(child);
                }
            }
        } catch (IOException e) {
            return;
        }
        file.delete();
    }
}
