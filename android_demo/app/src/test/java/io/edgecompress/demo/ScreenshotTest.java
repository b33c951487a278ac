package io.edgecompress.demo;

import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.os.Looper;
import android.view.View;
import android.view.ViewGroup;
import android.widget.ScrollView;
import android.widget.TextView;
import io.edgecompress.demo.core.Clock;
import io.edgecompress.demo.core.DrawingTest;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.FakeEngine;
import io.edgecompress.demo.core.HostLibrary;
import io.edgecompress.demo.core.Json;
import io.edgecompress.demo.core.PacedEngine;
import io.edgecompress.demo.core.Plan;
import io.edgecompress.demo.core.Probe;
import io.edgecompress.demo.core.TestBundles;
import java.io.File;
import java.io.FileOutputStream;
import java.util.Arrays;
import java.util.Collections;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.annotation.GraphicsMode;

/** Draws every screen into PNGs, light and dark, on a small phone and a tablet. */
@RunWith(RobolectricTestRunner.class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
public class ScreenshotTest {
    private static final File FOLDER =
            new File(System.getProperty("screenshots", "target/screenshots"));
    // 480 x 800 and 800 x 1280 pixels.
    private static final String PHONE = "w320dp-h533dp-%s-hdpi";
    private static final String TABLET = "w800dp-h1280dp-%s-mdpi";

    private DemoApp app;
    private FakeEngine.Ticker ticker;

    /** A phone that does not exist. */
    private static final class ExampleProbe implements Probe {
        @Override
        public JSONObject device() {
            return Json.object()
                    .put("manufacturer", "Example")
                    .put("model", "Phone")
                    .put("soc", "Example SoC 1")
                    .put("abi", "arm64-v8a")
                    .put("android", "14")
                    .put("sdk", 34)
                    .put("build_fingerprint", "example/phone")
                    .put("cpu_features", new JSONArray().put("asimddp"))
                    .put("cores", 8)
                    .put("max_freq_khz", null)
                    .put("ram_kb", 8_000_000)
                    .build();
        }

        @Override
        public Snapshot snapshot() {
            Snapshot snapshot = new Snapshot();
            snapshot.thermal = 0;
            snapshot.battery = 0.84;
            snapshot.charging = true;
            return snapshot;
        }
    }

    @Before
    public void prepare() throws Exception {
        HostLibrary.load();
        app = (DemoApp) RuntimeEnvironment.getApplication();
        ticker = new FakeEngine.Ticker();
        app.engine = new PacedEngine(ticker);
        app.clock = ticker;
        app.probe = new ExampleProbe();
        assertTrue(FOLDER.isDirectory() || FOLDER.mkdirs());
    }

    private File result(String name, boolean whole) throws Exception {
        Plan plan =
                new Plan(
                        whole ? Arrays.asList(1, 2, 4) : Collections.singletonList(1),
                        whole ? Arrays.asList(true, false) : Collections.singletonList(true),
                        10,
                        500,
                        0,
                        5,
                        Collections.<String>emptySet());
        app.runs.start(app.shipped(), "Digits", plan, name);
        while (app.runs.isRunning()) {
            Thread.sleep(5);
            shadowOf(Looper.getMainLooper()).idle();
        }
        File file = app.runs.lastResult();
        assertTrue(file.setLastModified(1_760_000_000_000L + name.length() * 7_000_000L));
        return file;
    }

    /** The computer's folder is another one in each run. */
    private static void showPhonePath(View view) {
        if (view instanceof ViewGroup) {
            for (int i = 0; i < ((ViewGroup) view).getChildCount(); i++) {
                showPhonePath(((ViewGroup) view).getChildAt(i));
            }
        } else if (view instanceof TextView) {
            TextView text = (TextView) view;
            String path = "/sdcard/Android/data/io.edgecompress.demo/files/bundles";
            text.setText(text.getText().toString().replaceAll("/\\S*external-files/bundles", path));
        }
    }

    private static void shoot(Activity activity, String name) throws Exception {
        shadowOf(Looper.getMainLooper()).idle();
        View view = activity.getWindow().getDecorView();
        showPhonePath(view);
        android.util.DisplayMetrics display = activity.getResources().getDisplayMetrics();
        int width = View.MeasureSpec.makeMeasureSpec(display.widthPixels, View.MeasureSpec.EXACTLY);
        // 533 dp of the small phone are half a pixel less than 800.
        int pixels = display.heightPixels + display.heightPixels % 2;
        int height = View.MeasureSpec.makeMeasureSpec(pixels, View.MeasureSpec.EXACTLY);
        view.measure(width, height);
        view.layout(0, 0, display.widthPixels, pixels);
        Bitmap bitmap =
                Bitmap.createBitmap(display.widthPixels, pixels, Bitmap.Config.ARGB_8888);
        view.draw(new Canvas(bitmap));
        File file = new File(FOLDER, name + ".png");
        try (FileOutputStream out = new FileOutputStream(file)) {
            assertTrue(bitmap.compress(Bitmap.CompressFormat.PNG, 100, out));
        }
        // A screen that drew nothing has one color.
        int first = bitmap.getPixel(0, 0);
        boolean drawn = false;
        for (int y = 0; y < bitmap.getHeight() && !drawn; y += 4) {
            for (int x = 0; x < bitmap.getWidth() && !drawn; x += 4) {
                drawn = bitmap.getPixel(x, y) != first;
            }
        }
        assertTrue(name + " is empty", drawn);
    }

    private <T extends Activity> T open(Class<T> screen, Intent intent) {
        return Robolectric.buildActivity(screen, intent).setup().get();
    }

    private void scroll(Activity activity, int share) {
        ScrollView scroll = activity.findViewById(R.id.scroll);
        int all = scroll.getChildAt(0).getHeight() - scroll.getHeight();
        scroll.scrollTo(0, Math.max(0, all * share / 100));
    }

    private void shootAll(String qualifiers, String prefix, boolean more) throws Exception {
        RuntimeEnvironment.setQualifiers(qualifiers);
        File result = result("digits.json", true);
        app.runs.fail(new Failure(Failure.Code.BUNDLE, "bundle.json is no JSON."), "x.json");
        assertTrue(
                new File(app.history().folder(), "x.json").setLastModified(1_759_000_000_000L));
        shoot(open(MainActivity.class, new Intent()), prefix + "-bundles");
        shoot(open(RunActivity.class, RunActivity.intent(app, app.shipped())), prefix + "-setup");
        ResultActivity shown = open(ResultActivity.class, ResultActivity.intent(app, result));
        shoot(shown, prefix + "-result");
        for (int share : more ? new int[] {50, 100} : new int[0]) {
            scroll(shown, share);
            shoot(shown, prefix + "-result-" + share);
        }
        shoot(open(HistoryActivity.class, new Intent()), prefix + "-history");
        LiveActivity live = open(LiveActivity.class, LiveActivity.intent(app, app.shipped()));
        DrawView draw = live.findViewById(R.id.draw);
        draw.drawing().restore(DrawingTest.digit(3, 0.08f, 0.06f, 0.88f).lines());
        draw.invalidate();
        live.findViewById(R.id.clear);
        Robolectric.flushForegroundThreadScheduler();
        live.answer();
        shoot(live, prefix + "-draw");
        running(prefix);
    }

    /** The screen of a run in its middle. */
    private void running(String prefix) throws Exception {
        Clock before = app.clock;
        app.clock = Clock.SYSTEM;
        Plan endless =
                new Plan(
                        Arrays.asList(1, 2, 4),
                        Collections.singletonList(true),
                        1,
                        1,
                        600,
                        1,
                        Collections.singleton("int8"));
        app.runs.start(app.shipped(), "Digits", endless, "running.json");
        while (app.runs.progress() == null) {
            Thread.sleep(5);
            shadowOf(Looper.getMainLooper()).idle();
        }
        RunActivity run = open(RunActivity.class, RunActivity.intent(app, app.shipped()));
        ((android.widget.ProgressBar) run.findViewById(R.id.progress)).setProgress(430);
        shoot(run, prefix + "-running");
        app.runs.cancel();
        while (app.runs.isRunning()) {
            Thread.sleep(5);
            shadowOf(Looper.getMainLooper()).idle();
        }
        app.clock = before;
    }

    @Test
    public void phoneLight() throws Exception {
        shootAll(String.format(PHONE, "notnight"), "phone-light", true);
    }

    @Test
    public void phoneDark() throws Exception {
        shootAll(String.format(PHONE, "night"), "phone-dark", true);
    }

    @Test
    public void tabletLight() throws Exception {
        shootAll(String.format(TABLET, "notnight"), "tablet-light", false);
    }

    @Test
    public void tabletDark() throws Exception {
        shootAll(String.format(TABLET, "night"), "tablet-dark", false);
    }

    @Test
    public void largeFont() throws Exception {
        RuntimeEnvironment.setFontScale(1.6f);
        shootAll(String.format(PHONE, "notnight"), "phone-large", true);
    }

    @Test
    public void landscape() throws Exception {
        shootAll("w533dp-h320dp-land-notnight-hdpi", "phone-land", false);
    }

    @Test
    public void badBundle() throws Exception {
        RuntimeEnvironment.setQualifiers(String.format(PHONE, "notnight"));
        File folder = TestBundles.copy(new File(app.pushed(), "Küche"));
        JSONObject json = TestBundles.json(folder).put("schema", "edgecompress.bundle/9");
        TestBundles.write(folder, json);
        shoot(open(MainActivity.class, new Intent()), "phone-light-bad-bundle");
        shoot(open(RunActivity.class, RunActivity.intent(app, folder)), "phone-light-bad-setup");
    }
}
