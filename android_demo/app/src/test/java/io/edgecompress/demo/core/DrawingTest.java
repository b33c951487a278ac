package io.edgecompress.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import java.io.File;
import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class DrawingTest {
    @Rule public final TemporaryFolder temporary = new TemporaryFolder();

    /** A digit as a finger might draw it, anywhere on the screen. */
    public static Drawing digit(int digit, float x, float y, float size) {
        float[][][] digits = {
            {{.5f, .1f, .25f, .3f, .22f, .65f, .45f, .9f, .7f, .75f, .76f, .4f, .5f, .1f}},
            {{.38f, .25f, .55f, .1f, .5f, .9f}},
            {{.25f, .3f, .45f, .12f, .7f, .25f, .6f, .5f, .25f, .88f, .75f, .85f}},
            {{.25f, .15f, .65f, .15f, .45f, .45f, .7f, .65f, .5f, .9f, .25f, .82f}},
            {{.35f, .1f, .25f, .5f, .7f, .5f}, {.68f, .15f, .6f, .92f}},
            {{.7f, .12f, .35f, .12f, .3f, .45f, .6f, .48f, .68f, .72f, .45f, .9f, .25f, .82f}},
            {{.6f, .1f, .35f, .4f, .28f, .75f, .5f, .9f, .68f, .75f, .5f, .55f, .3f, .68f}},
            {{.22f, .15f, .72f, .15f, .45f, .9f}},
        };
        Drawing drawing = new Drawing();
        for (float[] line : digits[digit]) {
            for (int i = 0; i < line.length; i += 2) {
                float px = x + size * line[i];
                float py = y + size * line[i + 1];
                if (i == 0) {
                    drawing.begin(px, py);
                } else {
                    drawing.add(px, py);
                }
            }
        }
        return drawing;
    }

    @Test
    public void theModelReadsDrawnDigits() throws Exception {
        HostLibrary.load();
        Bundle bundle = BundleReader.read(TestBundles.SHIPPED);
        try (LiveModel model = LiveModel.open(new TfliteEngine(), Clock.SYSTEM, bundle)) {
            assertEquals("int8-pruned", model.model.kind);
            assertTrue(model.isWriting());
            for (int digit = 0; digit < 8; digit++) {
                for (float size : new float[] {0.2f, 0.9f}) {
                    Drawing drawing = digit(digit, 0.05f, 0.1f, size);
                    LiveModel.Answer answer = model.classify(model.picture(drawing));
                    assertEquals(String.valueOf(digit), model.label(answer.order.get(0)));
                    assertTrue(answer.microseconds > 0);
                    float sum = 0;
                    for (float score : answer.scores) {
                        sum += score;
                    }
                    assertEquals(1, sum, 0.05);
                }
            }
        }
    }

    @Test
    public void sizeAndPlaceDoNotMatter() {
        float[] here = digit(3, 0, 0, 1).picture(28, 28, 0.7f, false);
        float[] there = digit(3, 0.6f, 0.5f, 0.3f).picture(28, 28, 0.7f, false);
        for (int i = 0; i < here.length; i++) {
            assertEquals(here[i], there[i], 1e-3);
            assertTrue(here[i] >= 0 && here[i] <= 1);
        }
    }

    @Test
    public void theCenterOfMassIsInTheMiddle() {
        float[] picture = digit(7, 0, 0, 1).picture(28, 28, 0.6f, false);
        double sum = 0;
        double x = 0;
        double y = 0;
        for (int i = 0; i < picture.length; i++) {
            sum += picture[i];
            x += picture[i] * (i % 28 + 0.5);
            y += picture[i] * (i / 28 + 0.5);
        }
        assertEquals(14, x / sum, 0.1);
        assertEquals(14, y / sum, 0.1);
    }

    @Test
    public void closedOutlinesAreFilled() {
        Drawing square = new Drawing();
        square.begin(0, 0);
        square.add(1, 0);
        square.add(1, 1);
        square.add(0, 1);
        square.add(0, 0);
        float[] outline = square.picture(28, 28, 0.8f, false);
        float[] filled = square.picture(28, 28, 0.8f, true);
        assertEquals(0, outline[14 * 28 + 14], 0);
        assertTrue(filled[14 * 28 + 14] > 0.5);
        assertEquals(0, filled[0], 0);
    }

    @Test
    public void aDotAndNothingAreDrawings() {
        Drawing drawing = new Drawing();
        for (float ink : drawing.picture(8, 8, 0.6f, false)) {
            assertEquals(0, ink, 0);
        }
        drawing.begin(0.5f, 0.5f);
        float[] dot = drawing.picture(28, 28, 0.6f, false);
        float most = 0;
        for (float ink : dot) {
            most = Math.max(most, ink);
        }
        assertTrue(most > 0.5f);
        Drawing copy = new Drawing();
        copy.restore(drawing.lines());
        assertFalse(copy.isEmpty());
        copy.clear();
        assertTrue(copy.isEmpty());
    }

    @Test
    public void aBundleWithoutAPictureHasNoLiveModel() throws Exception {
        File folder = TestBundles.copy(new File(temporary.getRoot(), "b"));
        JSONObject json = TestBundles.json(folder);
        for (int i = 0; i < 3; i++) {
            json.getJSONArray("models")
                    .getJSONObject(i)
                    .getJSONArray("inputs")
                    .getJSONObject(0)
                    .put("shape", new org.json.JSONArray("[1, 784]"));
        }
        TestBundles.write(folder, json);
        assertEquals(null, LiveModel.choose(BundleReader.read(folder)));
    }
}
