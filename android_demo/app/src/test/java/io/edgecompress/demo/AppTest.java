package io.edgecompress.demo;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.ComponentName;
import android.content.Intent;
import android.content.pm.ActivityInfo;
import android.net.Uri;
import android.os.Looper;
import android.os.SystemClock;
import android.view.MotionEvent;
import android.view.View;
import android.view.ViewGroup;
import android.widget.CheckBox;
import android.widget.TextView;
import io.edgecompress.demo.core.Clock;
import io.edgecompress.demo.core.Disk;
import io.edgecompress.demo.core.DrawingTest;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.HostLibrary;
import io.edgecompress.demo.core.Plan;
import io.edgecompress.demo.core.Result;
import io.edgecompress.demo.core.TestBundles;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.InputStream;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.Set;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.android.controller.ActivityController;
import org.robolectric.annotation.Config;
import org.robolectric.annotation.GraphicsMode;

/** The screens on a simulated phone, with the real engine. */
@RunWith(RobolectricTestRunner.class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(qualifiers = "w320dp-h533dp-hdpi")
public class AppTest {
    private static final long LONGEST_MS = 60_000;

    private DemoApp app;

    @Before
    public void prepare() throws Exception {
        HostLibrary.load();
        app = (DemoApp) RuntimeEnvironment.getApplication();
        // The simulated system's clock stands still.
        app.clock = Clock.SYSTEM;
    }

    private static void idle() {
        shadowOf(Looper.getMainLooper()).idle();
    }

    private static void sleep() {
        try {
            Thread.sleep(10);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
        idle();
    }

    private void waitForEnd() {
        for (long end = System.nanoTime() + LONGEST_MS * 1_000_000; app.runs.isRunning(); sleep()) {
            assertTrue("the run does not end", System.nanoTime() < end);
        }
    }

    private static Plan quick() throws Failure {
        return new Plan(
                Collections.singletonList(1),
                Collections.singletonList(true),
                1,
                5,
                0,
                5,
                Collections.<String>emptySet());
    }

    private static Plan endless() {
        return new Plan(
                Collections.singletonList(1),
                Collections.singletonList(true),
                1,
                5,
                600,
                5,
                Collections.<String>emptySet());
    }

    private static String texts(View view) {
        if (view.getVisibility() != View.VISIBLE) {
            return "";
        }
        if (view instanceof TextView) {
            return ((TextView) view).getText() + "\n";
        }
        StringBuilder all = new StringBuilder();
        if (view instanceof ViewGroup) {
            for (int i = 0; i < ((ViewGroup) view).getChildCount(); i++) {
                all.append(texts(((ViewGroup) view).getChildAt(i)));
            }
        }
        return all.toString();
    }

    private static String texts(Activity activity) {
        return texts(activity.getWindow().getDecorView());
    }

    private static void has(String text, String part) {
        assertTrue("\"" + part + "\" is not in:\n" + text, text.contains(part));
    }

    private <T extends Activity> ActivityController<T> open(Class<T> screen, Intent intent) {
        return Robolectric.buildActivity(screen, intent).setup();
    }

    // --- bundles --------------------------------------------------------------------------------

    @Test
    public void showsTheShippedAndThePushedBundles() throws Exception {
        TestBundles.copy(new File(app.pushed(), "Küche 7"));
        assertTrue(new File(app.pushed(), "kaputt").mkdirs());
        MainActivity main = open(MainActivity.class, new Intent()).get();
        String text = texts(main);
        has(text, "Digits");
        has(text, "3 models, ");
        has(text, "kaputt");
        has(text, "Cannot be used. There is no bundle.json");
        has(text, "No results yet.");
        has(text, app.pushed().getPath());
        assertEquals(3, app.bundles().size());
    }

    @Test
    public void theShippedBundleIsUnpackedOnce() throws Exception {
        File folder = app.shipped();
        File model = new File(folder, TestBundles.INT8);
        long first = model.lastModified();
        assertTrue(model.setLastModified(first - 100_000));
        app.shipped();
        assertEquals(first - 100_000, model.lastModified());
    }

    private String openZip(byte[] zip) throws Exception {
        ActivityController<MainActivity> main = open(MainActivity.class, new Intent());
        main.get().findViewById(R.id.screen_action).performClick();
        Intent picker = shadowOf(main.get()).peekNextStartedActivityForResult().intent;
        assertEquals(Intent.ACTION_OPEN_DOCUMENT, picker.getAction());
        Uri uri = Uri.parse("content://files/Mein%20B%C3%BCndel.zip");
        InputStream stream = new ByteArrayInputStream(zip);
        shadowOf(app.getContentResolver()).registerInputStream(uri, stream);
        shadowOf(main.get())
                .receiveResult(picker, Activity.RESULT_OK, new Intent().setData(uri));
        for (int i = 0; i < 300 && stream.available() == zip.length && zip.length > 0; i++) {
            sleep();
        }
        for (int i = 0; i < 30; i++) {
            sleep();
        }
        return texts(main.get());
    }

    @Test
    public void opensAZip() throws Exception {
        String text = openZip(TestBundles.zip(TestBundles.SHIPPED, "export/"));
        assertEquals(text.indexOf("Digits"), text.lastIndexOf("Digits", text.indexOf("Digits")));
        assertTrue(text.indexOf("Digits") != text.lastIndexOf("Digits"));
        assertEquals(1, app.imported().list().size());
    }

    @Test
    public void aBadZipIsAMessage() throws Exception {
        String text = openZip(TestBundles.zipOf("../../evil", new byte[1]));
        has(text, "Mein Bündel.zip: ");
        assertEquals(0, app.imported().list().size());
        has(openZip("no zip".getBytes("UTF-8")), "is not a .zip");
    }

    // --- running --------------------------------------------------------------------------------

    @Test
    public void runsFromStartToResult() throws Exception {
        ActivityController<RunActivity> run =
                open(RunActivity.class, RunActivity.intent(app, app.shipped()));
        has(texts(run.get()), "18 measurements, about 22 s");
        for (int id : new int[] {R.id.threads_2, R.id.threads_4, R.id.xnnpack_off}) {
            ((CheckBox) run.get().findViewById(id)).performClick();
        }
        run.get().findViewById(R.id.length_quick).performClick();
        has(texts(run.get()), "3 measurements, about 2 s");
        run.get().findViewById(R.id.start).performClick();
        assertTrue(app.runs.isRunning());
        Intent service = shadowOf(app).getNextStartedService();
        assertEquals(BenchmarkService.class.getName(), service.getComponent().getClassName());
        idle();
        has(texts(run.get()), "Measuring");
        waitForEnd();
        Intent next = shadowOf(run.get()).getNextStartedActivity();
        assertEquals(ResultActivity.class.getName(), next.getComponent().getClassName());
        assertTrue(run.get().isFinishing());
        Result result = Result.read(app.runs.lastResult());
        assertEquals(3, result.measurements.size());
        assertNull(result.error);
        assertEquals(34, result.json.getJSONObject("device").getInt("sdk"));
        String text = texts(open(ResultActivity.class, next).get());
        has(text, "int8-pruned, 1 thread, XNNPACK");
        has(text, " of 80 values equal");
        has(text, "Spread of repeats");
    }

    @Test
    public void nothingToMeasureCannotStart() throws Exception {
        RunActivity run = open(RunActivity.class, RunActivity.intent(app, app.shipped())).get();
        run.findViewById(R.id.xnnpack_on).performClick();
        run.findViewById(R.id.xnnpack_off).performClick();
        assertFalse(run.findViewById(R.id.start).isEnabled());
        has(texts(run), "Choose at least one");
    }

    @Test
    public void rotationKeepsARunAndCancelEndsIt() throws Exception {
        ActivityController<RunActivity> run =
                open(RunActivity.class, RunActivity.intent(app, app.shipped()));
        app.runs.start(app.shipped(), "Digits", endless(), null);
        idle();
        RunActivity before = run.get();
        RuntimeEnvironment.setQualifiers("+land");
        run.configurationChange(RuntimeEnvironment.getApplication().getResources().getConfiguration());
        assertTrue(app.runs.isRunning());
        assertTrue(before != run.get() || !before.isFinishing());
        for (int i = 0; i < 500 && app.runs.progress() == null; i++) {
            sleep();
        }
        has(texts(run.get()), "int8-pruned, 1 thread, XNNPACK");
        has(texts(run.get()), "1 of 3");
        run.get().findViewById(R.id.cancel).performClick();
        has(texts(run.get()), "Stopping");
        waitForEnd();
        Result result = Result.read(app.runs.lastResult());
        assertEquals("The run was cancelled.", result.error);
        Intent next = shadowOf(run.get()).getNextStartedActivity();
        String text = texts(open(ResultActivity.class, next).get());
        has(text, "Did not finish");
        has(text, "The run was cancelled.");
    }

    @Test
    public void anotherRunCannotStartMeanwhile() throws Exception {
        app.runs.start(app.shipped(), "Digits", endless(), null);
        try {
            app.runs.start(app.shipped(), "Digits", quick(), null);
            assertTrue(false);
        } catch (Failure e) {
            has(e.getMessage(), "Another run is going on");
        }
        // The screen of any bundle shows the run that goes on.
        has(texts(open(RunActivity.class, RunActivity.intent(app, app.pushed())).get()), "Measuring");
        has(texts(open(MainActivity.class, new Intent()).get()), "A run is going on");
        app.runs.cancel();
        waitForEnd();
    }

    @Test
    public void aDamagedBundleIsAMessage() throws Exception {
        File folder = new File(app.pushed(), "leer");
        assertTrue(folder.mkdirs());
        RunActivity run = open(RunActivity.class, RunActivity.intent(app, folder)).get();
        has(texts(run), "There is no bundle.json");
        assertFalse(run.findViewById(R.id.start).isEnabled());
    }

    @Test
    public void theServiceShowsTheRunAndEndsWithIt() throws Exception {
        app.runs.start(app.shipped(), "Digits", endless(), null);
        BenchmarkService service = Robolectric.setupService(BenchmarkService.class);
        assertNotNull(shadowOf(service).getLastForegroundNotification());
        assertFalse(shadowOf(service).isStoppedBySelf());
        Intent cancel = new Intent(app, BenchmarkService.class);
        service.onStartCommand(cancel.setAction("io.edgecompress.demo.CANCEL"), 0, 1);
        assertTrue(app.runs.isStopping());
        waitForEnd();
        assertTrue(shadowOf(service).isStoppedBySelf());
        service.onDestroy();
    }

    // --- results --------------------------------------------------------------------------------

    @Test
    public void historyShowsGoodAndDamagedResults() throws Exception {
        app.runs.start(app.shipped(), "Digits", quick(), null);
        waitForEnd();
        app.runs.fail(new Failure(Failure.Code.BUNDLE, "It broke."), null);
        Files.write(new File(app.history().folder(), "x.json").toPath(), new byte[] {'{'});
        String text = texts(open(HistoryActivity.class, new Intent()).get());
        has(text, "Digits");
        has(text, "It broke.");
        has(text, "Cannot be read");
        has(texts(open(MainActivity.class, new Intent()).get()), "Earlier results");
    }

    @Test
    public void aMissingResultIsAMessage() {
        Intent intent = ResultActivity.intent(app, new File("gone.json"));
        has(texts(open(ResultActivity.class, intent).get()), "Cannot read gone.json");
        open(ResultActivity.class, new Intent());
    }

    @Test
    public void sharesTheFileAndNothingElse() throws Exception {
        File file = app.runs.fail(new Failure(Failure.Code.BUNDLE, "It broke."), "Lauf 1.json");
        ResultActivity screen =
                open(ResultActivity.class, ResultActivity.intent(app, file)).get();
        screen.findViewById(R.id.screen_action).performClick();
        Intent chooser = shadowOf(screen).getNextStartedActivity();
        @SuppressWarnings("deprecation")
        Intent send = (Intent) chooser.getExtras().get(Intent.EXTRA_INTENT);
        @SuppressWarnings("deprecation")
        Uri uri = (Uri) send.getExtras().get(Intent.EXTRA_STREAM);
        ResultProvider provider = Robolectric.setupContentProvider(ResultProvider.class);
        provider.openFile(uri, "r").close();
        try {
            provider.openFile(uri, "rw");
            assertTrue(false);
        } catch (FileNotFoundException e) {
            // Results can only be read.
        }
        for (String path : new String[] {"..%2Fbundle.json", "%2Fetc%2Fpasswd", "gone.json"}) {
            try {
                provider.openFile(Uri.parse("content://io.edgecompress.demo.results/" + path), "r");
                assertTrue(path, false);
            } catch (FileNotFoundException e) {
                // As it should be.
            }
        }
    }

    // --- without a hand -------------------------------------------------------------------------

    @Test
    public void onlyAdbStartsRuns() throws Exception {
        ComponentName name = new ComponentName(app, HeadlessActivity.class);
        ActivityInfo info = app.getPackageManager().getActivityInfo(name, 0);
        assertTrue(info.exported);
        assertEquals("android.permission.DUMP", info.permission);
    }

    private Result headless(String result, String... extras) throws Exception {
        Intent intent = new Intent();
        for (int i = 0; i < extras.length; i += 2) {
            intent.putExtra(extras[i], extras[i + 1]);
        }
        if (result != null) {
            intent.putExtra("result", result);
        }
        Activity activity = Robolectric.buildActivity(HeadlessActivity.class, intent).create().get();
        assertTrue(activity.isFinishing());
        waitForEnd();
        String name = result == null ? HeadlessActivity.DEFAULT_RESULT : result;
        return Result.read(new File(app.history().folder(), name));
    }

    @Test
    public void anIntentRunsAPushedBundle() throws Exception {
        TestBundles.copy(new File(app.pushed(), "bench-1"));
        Result result =
                headless(
                        "bench-1.json", "bundle", "bench-1", "threads", "1", "xnnpack", "on", "runs",
                        "5", "min_s", "0", "models", "int8");
        assertNull(result.error);
        assertEquals(1, result.measurements.size());
        assertEquals("measured_device", result.measurements.get(0).json.getString("tier"));
        assertEquals(
                new HashSet<>(Arrays.asList("bench-1.json")),
                new HashSet<>(Arrays.asList(app.history().folder().list())));
    }

    @Test
    public void extrasMayBeNumbersAndPaths() throws Exception {
        File folder = TestBundles.copy(new File(app.pushed(), "b"));
        Intent intent =
                new Intent()
                        .putExtra("bundle", folder.getPath())
                        .putExtra("result", new File(app.history().folder(), "r.json").getPath())
                        .putExtra("threads", 1)
                        .putExtra("runs", 5)
                        .putExtra("min_s", 0f)
                        .putExtra("models", "int8");
        Robolectric.buildActivity(HeadlessActivity.class, intent).create();
        waitForEnd();
        Result result = Result.read(new File(app.history().folder(), "r.json"));
        assertEquals(2, result.measurements.size());
    }

    @Test
    public void aFailureIsAResultToo() throws Exception {
        has(headless("a.json").error, "bundle must be given");
        has(headless("b.json", "bundle", "nowhere").error, "There is no bundle \"nowhere\"");
        has(headless("c.json", "bundle", "demo", "threads", "x").error, "threads must be");
        has(headless("d.json", "bundle", "../files/demo").error, "leads outside");
        has(headless("e.json", "bundle", "/etc").error, "There is no bundle");
        has(headless(null, "bundle", "/proc/self").error, "There is no bundle");
        assertTrue(new File(app.pushed(), "empty").mkdirs());
        has(headless("f.json", "bundle", "empty").error, "There is no bundle.json");
        JSONObject json = Result.read(new File(app.history().folder(), "a.json")).json;
        assertEquals("arguments", json.getJSONObject("error").getString("code"));
    }

    @Test
    public void aResultOutsideItsFolderIsRefused() throws Exception {
        Intent intent = new Intent().putExtra("bundle", "demo").putExtra("result", "../x.json");
        Robolectric.buildActivity(HeadlessActivity.class, intent).create();
        assertFalse(app.runs.isRunning());
        File file = new File(app.history().folder(), HeadlessActivity.DEFAULT_RESULT);
        has(Result.read(file).error, "result must be a plain file name");
        assertFalse(new File(app.history().folder(), "../x.json").exists());
    }

    @Test
    public void aSecondRunIsRefusedWithAResultOfItsOwn() throws Exception {
        app.runs.start(app.shipped(), "Digits", endless(), "first.json");
        Intent intent = new Intent().putExtra("bundle", "demo").putExtra("result", "second.json");
        Robolectric.buildActivity(HeadlessActivity.class, intent).create();
        File second = new File(app.history().folder(), "second.json");
        has(Result.read(second).error, "Another run is going on");
        app.runs.cancel();
        waitForEnd();
        assertTrue(new File(app.history().folder(), "first.json").isFile());
    }

    // --- denied storage -------------------------------------------------------------------------

    @Test
    public void withoutSharedStorageResultsStayInside() throws Exception {
        // A file in the place of the folder can be neither read nor made.
        File shared = app.getExternalFilesDir(null);
        Disk.deleteTree(shared);
        Files.write(shared.toPath(), new byte[1]);
        assertNull(app.shared());
        assertNull(app.pushed());
        has(texts(open(MainActivity.class, new Intent()).get()), "shared storage of this device");
        app.runs.start(app.shipped(), "Digits", quick(), null);
        waitForEnd();
        assertTrue(app.runs.lastResult().getPath().startsWith(app.getFilesDir().getPath()));
        assertNull(Result.read(app.runs.lastResult()).error);
    }

    @Test
    public void aFullDiskIsAMessageAndLosesNothing() throws Exception {
        File old = app.runs.fail(new Failure(Failure.Code.BUNDLE, "It broke."), "old.json");
        // A folder in the place of the file cannot be overwritten.
        assertTrue(new File(app.history().folder(), "new.json/x").mkdirs());
        ActivityController<RunActivity> run =
                open(RunActivity.class, RunActivity.intent(app, app.shipped()));
        app.runs.start(app.shipped(), "Digits", quick(), "new.json");
        waitForEnd();
        assertNull(app.runs.lastResult());
        has(texts(run.get()), "Cannot write");
        assertEquals("It broke.", Result.read(old).error);
    }

    // --- live demo ------------------------------------------------------------------------------

    private static void drag(View view, float[] line) {
        long now = SystemClock.uptimeMillis();
        for (int i = 0; i < line.length; i += 2) {
            int action = i == 0 ? MotionEvent.ACTION_DOWN : MotionEvent.ACTION_MOVE;
            float x = line[i] * view.getWidth();
            float y = line[i + 1] * view.getHeight();
            view.dispatchTouchEvent(MotionEvent.obtain(now, now + i, action, x, y, 0));
        }
        int last = line.length - 2;
        view.dispatchTouchEvent(
                MotionEvent.obtain(
                        now,
                        now + 100,
                        MotionEvent.ACTION_UP,
                        line[last] * view.getWidth(),
                        line[last + 1] * view.getHeight(),
                        0));
    }

    @Test
    public void aDrawnDigitIsRead() throws Exception {
        ActivityController<LiveActivity> live =
                open(LiveActivity.class, LiveActivity.intent(app, app.shipped()));
        DrawView draw = live.get().findViewById(R.id.draw);
        assertTrue(draw.getWidth() > 0);
        for (float[] line : DrawingTest.digit(4, 0.1f, 0.1f, 0.8f).lines()) {
            drag(draw, line);
        }
        TextView answer = live.get().findViewById(R.id.live_answer);
        assertEquals("4", answer.getText().toString());
        has(texts(live.get()), "one inference, ");
        has(draw.getContentDescription().toString(), "Answer 4 with ");
        // Rotation keeps the drawing.
        RuntimeEnvironment.setQualifiers("+land");
        live.recreate();
        answer = live.get().findViewById(R.id.live_answer);
        assertEquals("4", answer.getText().toString());
        live.get().findViewById(R.id.clear).performClick();
        assertEquals("–", answer.getText().toString());
        live.destroy();
    }

    @Test
    public void aBundleThatCannotBeDrawnForSaysSo() throws Exception {
        File folder = new File(app.pushed(), "leer");
        assertTrue(folder.mkdirs());
        LiveActivity live = open(LiveActivity.class, LiveActivity.intent(app, folder)).get();
        has(texts(live), "There is no bundle.json");
    }

    // --- for everybody --------------------------------------------------------------------------

    private static void labelled(View view, Set<String> unlabelled) {
        if (view.getVisibility() != View.VISIBLE) {
            return;
        }
        boolean silent = view.isClickable() || view instanceof BarsView || view instanceof DrawView;
        boolean text = view instanceof TextView && ((TextView) view).getText().length() > 0;
        if (silent && !text && view.getContentDescription() == null && !(view instanceof ViewGroup)) {
            unlabelled.add(view.getClass().getSimpleName() + " " + view.getId());
        }
        if (view instanceof ViewGroup) {
            for (int i = 0; i < ((ViewGroup) view).getChildCount(); i++) {
                labelled(((ViewGroup) view).getChildAt(i), unlabelled);
            }
        }
    }

    @Test
    public void everythingThatCanBeTouchedHasALabel() throws Exception {
        app.runs.start(app.shipped(), "Digits", quick(), "a.json");
        waitForEnd();
        Set<String> unlabelled = new HashSet<>();
        File file = new File(app.history().folder(), "a.json");
        for (Activity screen :
                new Activity[] {
                    open(MainActivity.class, new Intent()).get(),
                    open(RunActivity.class, RunActivity.intent(app, app.shipped())).get(),
                    open(ResultActivity.class, ResultActivity.intent(app, file)).get(),
                    open(HistoryActivity.class, new Intent()).get(),
                    open(LiveActivity.class, LiveActivity.intent(app, app.shipped())).get(),
                }) {
            labelled(screen.getWindow().getDecorView(), unlabelled);
        }
        assertEquals(Collections.<String>emptySet(), unlabelled);
    }

    @Test
    public void theAppAsksForNoNetwork() throws Exception {
        String[] asked =
                app.getPackageManager()
                        .getPackageInfo(
                                app.getPackageName(),
                                android.content.pm.PackageManager.GET_PERMISSIONS)
                        .requestedPermissions;
        assertFalse(Arrays.asList(asked).contains("android.permission.INTERNET"));
    }

    @Test
    public void noticesNameTheRuntime() throws Exception {
        try (InputStream in = app.getAssets().open("NOTICE.txt")) {
            java.io.ByteArrayOutputStream out = new java.io.ByteArrayOutputStream();
            Disk.copy(in, out, 1 << 20);
            has(out.toString("UTF-8"), "TensorFlow Lite");
        }
        MainActivity main = open(MainActivity.class, new Intent()).get();
        has(texts(main), "Notices");
    }

    @Test
    public void whatTheSystemDeniesIsNull() throws Exception {
        JSONObject device = app.probe.device();
        for (String key : new String[] {"soc", "cpu_features", "max_freq_khz", "build_fingerprint"}) {
            assertTrue(key, device.has(key));
        }
        // The simulated phone has no frequencies.
        assertTrue(device.getJSONArray("max_freq_khz").isNull(0) || device.getInt("cores") > 0);
    }
}
