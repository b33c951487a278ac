package io.edgecompress.demo.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.util.Arrays;
import java.util.Collections;
import java.util.Map;
import java.util.TreeMap;
import org.junit.Test;

public class PlanTest {
    private static Plan plan(String... words) throws Failure {
        Map<String, String> options = new TreeMap<>();
        for (int i = 0; i < words.length; i += 2) {
            options.put(words[i], words[i + 1]);
        }
        return Plan.parse(options);
    }

    private static void refuses(String message, String... words) {
        try {
            plan(words);
            fail(message);
        } catch (Failure e) {
            assertEquals(Failure.Code.ARGUMENTS, e.code);
            assertTrue(e.getMessage(), e.getMessage().contains(message));
        }
    }

    @Test
    public void readsLists() throws Failure {
        Plan plan = plan("threads", "1, 4,1", "xnnpack", "OFF", "models", "int8", "min_s", "0.5");
        assertEquals(Arrays.asList(1, 4), plan.threads);
        assertEquals(Collections.singletonList(false), plan.xnnpack);
        assertEquals(Collections.singleton("int8"), plan.models);
        assertEquals(0.5, plan.minSeconds, 0);
    }

    @Test
    public void whatIsLeftOutIsEverything() throws Failure {
        Plan plan = plan();
        assertEquals(Arrays.asList(1, 2, 4), plan.threads);
        assertEquals(Arrays.asList(true, false), plan.xnnpack);
        assertTrue(plan.models.isEmpty());
    }

    @Test
    public void refusesWhatIsOutOfRange() {
        refuses("threads must be a whole number from 1 to 64. Got \"0\"", "threads", "0");
        refuses("threads must be", "threads", "two");
        refuses("threads must be a list", "threads", ",");
        refuses("xnnpack must be on, off or both. Got \"maybe\"", "xnnpack", "maybe");
        refuses("min_s must be", "min_s", "NaN");
        refuses("min_s must be", "min_s", "-1");
        refuses("min_s must be", "min_s", "1e9");
        refuses("runs must be", "runs", "0");
        refuses("warmup must be", "warmup", "99999999999");
        refuses("repeats must be", "repeats", "1.5");
    }
}
