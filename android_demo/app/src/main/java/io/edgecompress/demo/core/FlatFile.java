package io.edgecompress.demo.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/**
 * The list of operators of a .tflite file, read before any engine sees the file: an engine that gets
 * something else than a flatbuffer may take the process down.
 */
final class FlatFile {
    private static final int HEADER = 8;
    private static final String IDENTIFIER = "TFL3";
    // Fields of the tables Model and OperatorCode of the TensorFlow Lite schema.
    private static final int OPERATOR_CODES = 1;
    private static final int SUBGRAPHS = 2;
    private static final int CUSTOM_CODE = 1;
    private static final int MOST_OPERATORS = 10_000;

    /** Names of the custom operators. */
    final List<String> custom;

    private FlatFile(List<String> custom) {
        this.custom = custom;
    }

    static FlatFile read(ByteBuffer content, String file) throws Failure {
        ByteBuffer data = content.duplicate().order(ByteOrder.LITTLE_ENDIAN);
        Buffers.rewind(data);
        if (data.remaining() < HEADER || !identifier(data).equals(IDENTIFIER)) {
            throw bad(file, "it is not a .tflite flatbuffer");
        }
        try {
            int root = indirect(data, 0);
            int subgraphs = field(data, root, SUBGRAPHS);
            if (subgraphs == 0 || data.getInt(indirect(data, subgraphs)) < 1) {
                throw bad(file, "it holds no graph");
            }
            List<String> custom = new ArrayList<>();
            int codes = field(data, root, OPERATOR_CODES);
            if (codes != 0) {
                int vector = indirect(data, codes);
                int length = data.getInt(vector);
                if (length < 0 || length > MOST_OPERATORS) {
                    throw new IndexOutOfBoundsException();
                }
                for (int i = 0; i < length; i++) {
                    int code = indirect(data, vector + 4 + 4 * i);
                    int name = field(data, code, CUSTOM_CODE);
                    if (name != 0) {
                        custom.add(string(data, indirect(data, name)));
                    }
                }
            }
            return new FlatFile(custom);
        } catch (IndexOutOfBoundsException | IllegalArgumentException e) {
            throw bad(file, "the flatbuffer is damaged");
        }
    }

    /** Refuses custom operators: the app's runtime has none. */
    void checkOperators(String file) throws Failure {
        for (String name : custom) {
            String runtime;
            if (name.startsWith("Lce")) {
                runtime = Bundle.Runtime.LCE.title;
            } else if (name.startsWith("TFLM")) {
                runtime = Bundle.Runtime.TFLM.title;
            } else if (name.startsWith("Flex")) {
                runtime = "TensorFlow Lite with the Flex delegate (select TensorFlow operators)";
            } else {
                runtime = "a runtime that registers it";
            }
            throw needs(file, "its operator " + name, runtime);
        }
    }

    static Failure needs(String file, String what, String runtime) {
        return new Failure(
                Failure.Code.OPERATOR,
                file + ": " + what + " needs " + runtime + ", which this app does not have.");
    }

    private static String identifier(ByteBuffer data) {
        return text(data, 4, 4);
    }

    private static int indirect(ByteBuffer data, int at) {
        int offset = data.getInt(at);
        if (offset <= 0 || offset > data.limit() - at) {
            throw new IndexOutOfBoundsException();
        }
        return at + offset;
    }

    /** Returns where a field of a table is stored, or 0 where it is left out. */
    private static int field(ByteBuffer data, int table, int index) {
        int vtable = table - data.getInt(table);
        int entry = 4 + 2 * index;
        int size = data.getShort(vtable) & 0xffff;
        int offset = entry + 2 <= size ? data.getShort(vtable + entry) & 0xffff : 0;
        return offset == 0 ? 0 : table + offset;
    }

    private static String string(ByteBuffer data, int at) {
        int length = data.getInt(at);
        if (length < 0 || length > 1000) {
            throw new IndexOutOfBoundsException();
        }
        return text(data, at + 4, length);
    }

    private static String text(ByteBuffer data, int at, int length) {
        byte[] bytes = new byte[length];
        for (int i = 0; i < length; i++) {
            bytes[i] = data.get(at + i);
        }
        return new String(bytes, StandardCharsets.UTF_8);
    }

    private static Failure bad(String file, String reason) {
        return new Failure(Failure.Code.BUNDLE, file + ": " + reason + ".");
    }
}
