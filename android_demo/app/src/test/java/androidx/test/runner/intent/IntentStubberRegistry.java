package androidx.test.runner.intent;

/** Stands in for a class of androidx.test:monitor, which Robolectric calls and Maven Central lacks. */
public final class IntentStubberRegistry {
    private IntentStubberRegistry() {}

    public static boolean isLoaded() {
        return false;
    }
}
