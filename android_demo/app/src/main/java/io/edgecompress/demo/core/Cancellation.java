package io.edgecompress.demo.core;

/** A request to stop, made by one thread and seen by another. */
public final class Cancellation {
    private volatile boolean requested;

    public void request() {
        requested = true;
    }

    public boolean isRequested() {
        return requested;
    }

    void check() throws Failure {
        if (requested) {
            throw new Failure(Failure.Code.CANCELLED, "The run was cancelled.");
        }
    }
}
