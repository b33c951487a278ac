package io.edgecompress.demo;

import android.content.Context;
import io.edgecompress.demo.core.Progress;
import java.util.Locale;

/** Small things of several screens. */
final class App {
    static final String TAG = DemoApp.TAG;

    private App() {}

    static DemoApp of(Context context) {
        return (DemoApp) context.getApplicationContext();
    }

    /** Returns a line for the log. */
    static String line(Progress progress) {
        return String.format(
                Locale.ROOT,
                "%d/%d %s threads=%d xnnpack=%s",
                progress.step + 1,
                progress.steps,
                progress.kind,
                progress.threads,
                progress.xnnpack ? "on" : "off");
    }

    /** Returns a setting as people read it. */
    static String setting(Context context, String kind, int threads, boolean xnnpack) {
        String kernels = context.getString(xnnpack ? R.string.xnnpack_on : R.string.xnnpack_off);
        return context.getResources()
                .getQuantityString(R.plurals.setting, threads, kind, threads, kernels);
    }
}
