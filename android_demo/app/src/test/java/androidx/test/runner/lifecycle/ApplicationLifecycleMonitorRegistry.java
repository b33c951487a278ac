package androidx.test.runner.lifecycle;

/** Stands in for a class of androidx.test:monitor, which Robolectric calls and Maven Central lacks. */
public final class ApplicationLifecycleMonitorRegistry {
    private ApplicationLifecycleMonitorRegistry() {}

    public static void registerInstance(ApplicationLifecycleMonitor monitor) {}
}
