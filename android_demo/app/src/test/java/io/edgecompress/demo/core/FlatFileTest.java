package io.edgecompress.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Random;
import org.junit.Test;

public class FlatFileTest {
    private static byte[] int8() throws Exception {
        return Files.readAllBytes(new File(TestBundles.SHIPPED, TestBundles.INT8).toPath());
    }

    private static void refuses(byte[] content, String message) {
        try {
            FlatFile.read(ByteBuffer.wrap(content), "x.tflite");
            fail(message);
        } catch (Failure e) {
            assertTrue(e.getMessage(), e.getMessage().contains(message));
        }
    }

    @Test
    public void readsAModel() throws Exception {
        assertEquals(0, FlatFile.read(ByteBuffer.wrap(int8()), "x").custom.size());
    }

    @Test
    public void refusesWhatIsNoFlatbuffer() throws Exception {
        refuses(new byte[0], "not a .tflite flatbuffer");
        refuses("<html>404</html>".getBytes("UTF-8"), "not a .tflite flatbuffer");
        byte[] pointer = Arrays.copyOf(int8(), 8);
        refuses(pointer, "damaged");
        byte[] root = int8();
        root[3] = 0x7f;
        refuses(root, "damaged");
    }

    /** Whatever the bytes: read, or a Failure. */
    @Test
    public void damageNeverCrashes() throws Exception {
        byte[] whole = int8();
        Random random = new Random(3);
        for (int i = 0; i < 3000; i++) {
            byte[] content = whole.clone();
            for (int n = 0; n < 20; n++) {
                int at = random.nextBoolean() ? random.nextInt(200) : random.nextInt(whole.length);
                content[at < 8 ? 8 : at] = (byte) random.nextInt();
            }
            try {
                FlatFile.read(ByteBuffer.wrap(content), "x").checkOperators("x");
            } catch (Failure e) {
                assertEquals(false, e.getMessage().isEmpty());
            }
        }
    }
}
