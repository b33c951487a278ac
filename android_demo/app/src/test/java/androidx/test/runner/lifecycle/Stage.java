package androidx.test.runner.lifecycle;

/** Stands in for a class of androidx.test:monitor, which Robolectric calls and Maven Central lacks. */
public enum Stage {
    PRE_ON_CREATE,
    CREATED,
    STARTED,
    RESUMED,
    PAUSED,
    STOPPED,
    RESTARTED,
    DESTROYED
}
