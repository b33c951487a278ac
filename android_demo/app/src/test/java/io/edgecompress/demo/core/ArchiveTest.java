package io.edgecompress.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.util.Arrays;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class ArchiveTest {
    @Rule public final TemporaryFolder temporary = new TemporaryFolder();

    private File root;
    private BundleStore store;

    @Before
    public void make() {
        root = new File(temporary.getRoot(), "bundles");
        store = new BundleStore(root);
    }

    private void refuses(byte[] zip, String message) throws Exception {
        try {
            store.add(new ByteArrayInputStream(zip), "x.zip");
            fail(message);
        } catch (Failure e) {
            assertTrue(e.getMessage(), e.getMessage().contains(message));
        }
        String[] left = root.list();
        assertArrayEquals(new String[0], left == null ? new String[0] : left);
        assertFalse(new File(temporary.getRoot(), "evil.txt").exists());
    }

    @Test
    public void addsABundle() throws Exception {
        byte[] zip = TestBundles.zip(TestBundles.SHIPPED, "");
        BundleStore.Entry entry = store.add(new ByteArrayInputStream(zip), "Mein Bündel.zip");
        assertEquals("Mein Bündel", entry.folder.getName());
        assertEquals("Digits", entry.bundle.name);
        // The same name again: the first one stays.
        entry = store.add(new ByteArrayInputStream(zip), "Mein Bündel.zip");
        assertEquals("Mein Bündel 2", entry.folder.getName());
        assertEquals(2, store.list().size());
    }

    @Test
    public void addsABundleInAFolderOfTheZip() throws Exception {
        byte[] zip = TestBundles.zip(TestBundles.SHIPPED, "build/");
        assertEquals("Digits", store.add(new ByteArrayInputStream(zip), "../..").bundle.name);
        assertEquals(1, store.list().size());
        assertEquals(root, store.list().get(0).folder.getParentFile());
    }

    @Test
    public void refusesPathsThatLeaveTheFolder() throws Exception {
        byte[] text = "evil".getBytes("UTF-8");
        refuses(TestBundles.zipOf("../evil.txt", text), "leads outside its folder");
        refuses(TestBundles.zipOf("a/../../evil.txt", text), "leads outside its folder");
        refuses(TestBundles.zipOf("/evil.txt", text), "is absolute");
        refuses(TestBundles.zipOf("C:\\evil.txt", text), "is absolute");
        refuses(TestBundles.zipOf("..\\evil.txt", text), "no path in a bundle may have");
    }

    @Test
    public void refusesWhatIsNoZipOrDamaged() throws Exception {
        refuses(new byte[0], "is not a .zip");
        refuses("hello, this is not a zip".getBytes("UTF-8"), "is not a .zip");
        byte[] zip = TestBundles.zip(TestBundles.SHIPPED, "");
        refuses(Arrays.copyOf(zip, zip.length / 2), "zip");
        byte[] broken = zip.clone();
        Arrays.fill(broken, 60, 400, (byte) 0x55);
        refuses(broken, "zip");
    }

    @Test
    public void refusesAZipWithoutABundle() throws Exception {
        refuses(TestBundles.zipOf("readme.txt", new byte[3]), "There is no bundle.json");
        refuses(TestBundles.zipOf("bundle.json", new byte[3]), "bundle.json is no JSON");
    }

    @Test
    public void damagedBundlesAreListedWithTheReason() throws Exception {
        TestBundles.copy(new File(root, "good"));
        assertTrue(new File(root, "empty").mkdirs());
        assertEquals(2, store.list().size());
        assertTrue(store.list().get(0).failure.getMessage().contains("no bundle.json"));
        assertEquals("Digits", store.list().get(1).bundle.name);
    }
}
