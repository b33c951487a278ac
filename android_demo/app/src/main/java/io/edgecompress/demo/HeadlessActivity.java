package io.edgecompress.demo;

import android.app.Activity;
import android.content.Intent;
import android.os.Bundle;
import android.util.Log;
import io.edgecompress.demo.core.BundleStore;
import io.edgecompress.demo.core.Failure;
import io.edgecompress.demo.core.Plan;
import java.io.File;
import java.util.HashMap;
import java.util.Map;

/**
 * Starts a run for a computer: `am start -W -n io.edgecompress.demo/.HeadlessActivity --es bundle
 * NAME --es result NAME.json`, with the keys of {@link Plan} as further extras.
 *
 * <p>A result file is always written, under the default name where the given one is refused. The run
 * goes on behind the screen that shows its progress: what the user looks at may use all cores.
 */
public class HeadlessActivity extends Activity {
    static final String DEFAULT_RESULT = "headless.json";

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        DemoApp app = App.of(this);
        String result = DEFAULT_RESULT;
        try {
            Map<String, String> extras = extras();
            if (extras.get("result") != null) {
                result = app.resultName(extras.get("result"));
            }
            Plan plan = Plan.parse(extras);
            String name = extras.get("bundle");
            if (name == null) {
                throw new Failure(
                        Failure.Code.ARGUMENTS, "bundle must be given, as in --es bundle demo.");
            }
            File folder = app.bundleFolder(name);
            BundleStore.Entry entry = BundleStore.Entry.of(folder);
            String title = entry.bundle == null ? folder.getName() : entry.bundle.name;
            app.runs.start(folder, title, plan, result);
            startActivity(
                    RunActivity.intent(this, folder).addFlags(Intent.FLAG_ACTIVITY_NEW_TASK));
        } catch (Failure e) {
            Log.e(App.TAG, e.getMessage());
            app.runs.fail(e, result);
        } catch (RuntimeException e) {
            Log.e(App.TAG, "The intent cannot be read", e);
            app.runs.fail(Failure.of(e), result);
        }
        finish();
    }

    /** Returns the extras as texts, whatever their type: --ei threads 1 and --es threads 1,4. */
    @SuppressWarnings("deprecation") // The typed getters of API 33 want to know the type.
    private Map<String, String> extras() {
        Map<String, String> texts = new HashMap<>();
        Bundle extras = getIntent().getExtras();
        if (extras != null) {
            for (String key : extras.keySet()) {
                Object value = extras.get(key);
                if (value instanceof int[]) {
                    StringBuilder list = new StringBuilder();
                    for (int one : (int[]) value) {
                        list.append(one).append(',');
                    }
                    texts.put(key, list.toString());
                } else if (value != null) {
                    texts.put(key, String.valueOf(value));
                }
            }
        }
        return texts;
    }
}
