package io.edgecompress.demo.core;

/** The app's version, as in pom.xml and the manifest. */
public final class Version {
    public static final String NAME = "1.0.0";

    private Version() {}
}
