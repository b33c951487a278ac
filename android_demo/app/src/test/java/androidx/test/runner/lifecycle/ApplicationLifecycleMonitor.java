package androidx.test.runner.lifecycle;

/** Stands in for a class of androidx.test:monitor, which Robolectric calls and Maven Central lacks. */
public interface ApplicationLifecycleMonitor {}
