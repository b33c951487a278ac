package io.edgecompress.demo;

import android.content.Intent;
import android.os.Build;
import android.os.Handler;
import android.os.Looper;
import android.util.Log;
import io.edgecompress.demo.core.BenchmarkRun;
import io.edgecompress.demo.core.Cancellation;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Plan;
import io.edgecompress.demo.core.Progress;
import io.edgecompress.demo.core.Version;
import java.io.File;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONObject;

/** The one run that may go on; it belongs to the process, so no screen's end stops it. */
final class RunManager {
    /** Hears, on the main thread, that something changed. */
    interface Listener {
        void onRunChanged();
    }

    private final DemoApp app;
    private final Handler main = new Handler(Looper.getMainLooper());
    private final List<Listener> listeners = new ArrayList<>();

    private Thread worker;
    private Cancellation cancellation;
    private File folder;
    private String name;
    private Progress progress;
    private File lastResult;
    private Failure lastFailure;

    RunManager(DemoApp app) {
        this.app = app;
    }

    void listen(Listener listener) {
        listeners.add(listener);
    }

    void unlisten(Listener listener) {
        listeners.remove(listener);
    }

    boolean isRunning() {
        return worker != null;
    }

    boolean isStopping() {
        return isRunning() && cancellation.isRequested();
    }

    /** Returns the folder of the bundle that is run, or was run last. */
    File folder() {
        return folder;
    }

    /** Returns the name to show of it. */
    String name() {
        return name;
    }

    Progress progress() {
        return progress;
    }

    /** Returns the file of the last result; null before, and where it could not be stored. */
    File lastResult() {
        return lastResult;
    }

    /** Returns why the last result could not be stored, or null. */
    Failure lastFailure() {
        return lastFailure;
    }

    void cancel() {
        if (isRunning()) {
            cancellation.request();
            changed();
        }
    }

    /**
     * Starts a run.
     *
     * @param file Name of the result file, or null for a new one.
     */
    void start(File bundle, String title, Plan plan, String file) throws Failure {
        if (isRunning()) {
            throw new Failure(Failure.Code.ARGUMENTS, "Another run is going on. Wait, or cancel it.");
        }
        folder = bundle;
        name = title;
        progress = null;
        lastResult = null;
        lastFailure = null;
        cancellation = new Cancellation();
        BenchmarkRun run =
                run().cancellation(cancellation)
                        .listener(
                                step -> {
                                    Log.i(App.TAG, App.line(step));
                                    main.post(() -> progressed(step));
                                });
        worker =
                new Thread(
                        () -> {
                            JSONObject result = run.run(bundle, plan);
                            main.post(() -> finish(result, file));
                        },
                        "benchmark");
        startService();
        worker.start();
        changed();
    }

    private BenchmarkRun run() {
        return new BenchmarkRun(
                app.engine, app.probe, app.clock, "measured_device", Version.NAME);
    }

    /** Stores the result of a run that cannot begin. */
    File fail(Failure failure, String file) {
        return store(run().failed(failure), file);
    }

    private void startService() {
        Intent intent = new Intent(app, BenchmarkService.class);
        try {
            if (Build.VERSION.SDK_INT >= 26) {
                app.startForegroundService(intent);
            } else {
                app.startService(intent);
            }
        } catch (IllegalStateException | SecurityException e) {
            // The run goes on; the system may stop it once the app is left.
            Log.w(App.TAG, "No foreground service: " + e.getMessage());
        }
    }

    private void progressed(Progress step) {
        progress = step;
        changed();
    }

    private void finish(JSONObject result, String file) {
        lastResult = store(result, file);
        worker = null;
        changed();
    }

    private File store(JSONObject result, String file) {
        try {
            File stored = app.history().store(result, file);
            Log.i(App.TAG, "result " + stored);
            return stored;
        } catch (Failure e) {
            lastFailure = e;
            Log.e(App.TAG, e.getMessage());
            return null;
        }
    }

    private void changed() {
        for (Listener listener : new ArrayList<>(listeners)) {
            listener.onRunChanged();
        }
    }
}
