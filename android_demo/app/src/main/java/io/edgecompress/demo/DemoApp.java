package io.edgecompress.demo;

import android.app.Application;
import io.edgecompress.demo.core.BundleStore;
import io.edgecompress.demo.core.Clock;
import io.edgecompress.demo.core.Disk;
import io.edgecompress.demo.core.Engine;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.History;
import io.edgecompress.demo.core.Paths;
import io.edgecompress.demo.core.Probe;
import io.edgecompress.demo.core.TfliteEngine;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What all screens share: folders, engine, clock, and the run that is going on. */
public class DemoApp extends Application {
    static final String TAG = "edgecompress";
    private static final String SHIPPED = "demo";
    private static final String BUNDLES = "bundles";
    private static final String RESULTS = "results";

    Engine engine = new TfliteEngine();
    Clock clock = Clock.SYSTEM;
    Probe probe;
    RunManager runs;

    @Override
    public void onCreate() {
        super.onCreate();
        probe = new PhoneProbe(this);
        runs = new RunManager(this);
    }

    /** Returns the folder that a computer can push to, or null where the system denies it. */
    File shared() {
        File folder = getExternalFilesDir(null);
        boolean usable = folder != null && (folder.isDirectory() || folder.mkdirs());
        return usable && folder.canWrite() ? folder : null;
    }

    /** Returns the folder that bundles are pushed into, or null. */
    File pushed() {
        File shared = shared();
        if (shared == null) {
            return null;
        }
        File folder = new File(shared, BUNDLES);
        folder.mkdirs();
        return folder;
    }

    /** Returns the bundles that were opened in the app. */
    BundleStore imported() {
        return new BundleStore(new File(getFilesDir(), BUNDLES));
    }

    /** Returns where results are kept: where a computer can pull them from, if possible. */
    History history() {
        File shared = shared();
        return new History(new File(shared == null ? getFilesDir() : shared, RESULTS));
    }

    /** Returns the folder of the bundle that came with the app, unpacked. */
    File shipped() {
        File folder = new File(getFilesDir(), SHIPPED);
        try {
            byte[] stamp = (getPackageCodePath() + " " + lastUpdate()).getBytes("UTF-8");
            File mark = new File(getFilesDir(), SHIPPED + ".stamp");
            boolean current =
                    mark.isFile() && Arrays.equals(Disk.read(mark, 1 << 16), stamp);
            if (!current) {
                File part = new File(getFilesDir(), SHIPPED + ".part");
                Disk.deleteTree(part);
                unpack(SHIPPED, part);
                Disk.deleteTree(folder);
                if (!part.renameTo(folder)) {
                    throw new IOException("the folder cannot be renamed");
                }
                Disk.writeAtomic(mark, stamp);
            }
        } catch (IOException | Failure e) {
            android.util.Log.w(TAG, "The shipped bundle cannot be unpacked: " + e.getMessage());
        }
        return folder;
    }

    private long lastUpdate() {
        try {
            return getPackageManager().getPackageInfo(getPackageName(), 0).lastUpdateTime;
        } catch (android.content.pm.PackageManager.NameNotFoundException e) {
            return 0;
        }
    }

    private void unpack(String path, File target) throws IOException {
        String[] children = getAssets().list(path);
        if (children != null && children.length > 0) {
            for (String child : children) {
                unpack(path + "/" + child, new File(target, child));
            }
            return;
        }
        File parent = target.getParentFile();
        if (!parent.isDirectory() && !parent.mkdirs()) {
            throw new IOException("the folder " + parent + " cannot be made");
        }
        try (InputStream in = getAssets().open(path);
                FileOutputStream out = new FileOutputStream(target)) {
            Disk.copy(in, out, Long.MAX_VALUE);
        }
    }

    /** Returns the shipped, the pushed and the opened bundles. */
    List<BundleStore.Entry> bundles() {
        List<BundleStore.Entry> entries = new ArrayList<>();
        entries.add(BundleStore.Entry.of(shipped()));
        File pushed = pushed();
        if (pushed != null) {
            entries.addAll(new BundleStore(pushed).list());
        }
        entries.addAll(imported().list());
        return entries;
    }

    /** Returns the folder of a bundle by name, or by path inside the app's own folders. */
    File bundleFolder(String name) throws Failure {
        if (name.equals(SHIPPED)) {
            return shipped();
        }
        File pushed = pushed();
        List<File> roots = new ArrayList<>();
        if (pushed != null) {
            roots.add(pushed);
            roots.add(shared());
        }
        roots.add(new File(getFilesDir(), BUNDLES));
        roots.add(getFilesDir());
        for (File root : roots) {
            if (name.startsWith("/")) {
                File folder = new File(name);
                if (Paths.isInside(root, folder)) {
                    return folder;
                }
            } else {
                File folder = Paths.resolve(root, name, Failure.Code.ARGUMENTS, "The bundle");
                if (folder.isDirectory()) {
                    return folder;
                }
            }
        }
        throw new Failure(
                Failure.Code.ARGUMENTS,
                "There is no bundle \"" + name + "\". Push its folder into "
                        + (pushed == null ? getFilesDir() : pushed) + ", and give its name.");
    }

    /** Returns the name of a result file from a name or a path in the folder of results. */
    String resultName(String wanted) throws Failure {
        History history = history();
        File file = new File(wanted);
        if (wanted.startsWith("/") && Paths.isInside(history.folder(), file)) {
            return history.file(file.getName()).getName();
        }
        return history.file(wanted).getName();
    }
}
