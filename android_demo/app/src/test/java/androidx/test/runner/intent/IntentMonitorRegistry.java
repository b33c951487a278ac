package androidx.test.runner.intent;

/** Stands in for a class of androidx.test:monitor, which Robolectric calls and Maven Central lacks. */
public final class IntentMonitorRegistry {
    private IntentMonitorRegistry() {}

    public static void registerInstance(IntentMonitor monitor) {}
}
