package io.edgecompress.demo.core;

import java.io.File;
import java.io.IOException;

/** Paths that come from outside: they stay inside the folder they belong to. */
public final class Paths {
    private static final int LONGEST = 512;

    private Paths() {}

    /** Returns why a relative path is refused, or null where it is fine. */
    static String problem(String path) {
        if (path.isEmpty()) {
            return "is empty";
        }
        if (path.length() > LONGEST) {
            return "has more than " + LONGEST + " characters";
        }
        if (path.startsWith("/") || path.matches("^[A-Za-z]:.*")) {
            return "is absolute";
        }
        if (path.indexOf('\\') >= 0 || path.indexOf('\0') >= 0) {
            return "has a character that no path in a bundle may have";
        }
        for (String part : path.split("/", -1)) {
            if (part.isEmpty() || part.equals(".")) {
                return "has an empty part";
            }
            if (part.equals("..")) {
                return "leads outside its folder";
            }
        }
        return null;
    }

    /** Returns the file of a path inside a folder. */
    public static File resolve(File folder, String path, Failure.Code code, String what)
            throws Failure {
        String problem = problem(path);
        if (problem != null) {
            throw new Failure(code, what + " \"" + path + "\" " + problem + ".");
        }
        File file = new File(folder, path);
        if (!isInside(folder, file)) {
            throw new Failure(code, what + " \"" + path + "\" leads outside its folder.");
        }
        return file;
    }

    /** Whether a file lies in a folder once links are followed. */
    public static boolean isInside(File folder, File file) {
        try {
            String root = folder.getCanonicalPath() + File.separator;
            return file.getCanonicalPath().startsWith(root);
        } catch (IOException e) {
            return false;
        }
    }
}
