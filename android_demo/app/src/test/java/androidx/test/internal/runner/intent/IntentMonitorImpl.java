package androidx.test.internal.runner.intent;

import android.content.Intent;
import androidx.test.runner.intent.IntentMonitor;

/** Stands in for a class of androidx.test:monitor, which Robolectric calls and Maven Central lacks. */
public class IntentMonitorImpl implements IntentMonitor {
    public void signalIntent(Intent intent) {}
}
