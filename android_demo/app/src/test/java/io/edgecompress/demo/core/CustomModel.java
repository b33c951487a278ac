package io.edgecompress.demo.core;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;

/** Flatbuffers of operators that the runtime does not have. */
final class CustomModel {
    private CustomModel() {}

    /**
     * Returns a file whose only operator code is a custom one: header, Model with operator_codes and
     * subgraphs, one OperatorCode, an empty SubGraph.
     */
    static byte[] of(String operator) {
        byte[] name = operator.getBytes(StandardCharsets.UTF_8);
        ByteBuffer data = ByteBuffer.allocate(120 + name.length).order(ByteOrder.LITTLE_ENDIAN);
        data.putInt(0, 20);
        data.put(4, (byte) 'T').put(5, (byte) 'F').put(6, (byte) 'L').put(7, (byte) '3');
        // Model: vtable at 8 (version, operator_codes, subgraphs), table at 20.
        data.putShort(8, (short) 10).putShort(10, (short) 12);
        data.putShort(12, (short) 0).putShort(14, (short) 4).putShort(16, (short) 8);
        data.putInt(20, 20 - 8);
        data.putInt(24, 32 - 24);
        data.putInt(28, 40 - 28);
        // Vectors with one entry each.
        data.putInt(32, 1).putInt(36, 60 - 36);
        data.putInt(40, 1).putInt(44, 84 - 44);
        // OperatorCode: vtable at 48 (deprecated code, custom code), table at 60.
        data.putShort(48, (short) 8).putShort(50, (short) 8);
        data.putShort(52, (short) 0).putShort(54, (short) 4);
        data.putInt(60, 60 - 48);
        data.putInt(64, 100 - 64);
        // SubGraph: an empty vtable at 76, table at 84.
        data.putShort(76, (short) 4).putShort(78, (short) 4);
        data.putInt(84, 84 - 76);
        data.putInt(100, name.length);
        for (int i = 0; i < name.length; i++) {
            data.put(104 + i, name[i]);
        }
        return data.array();
    }

    /** Returns the shipped int8 model with another builtin operator in a builtin operator's place. */
    static byte[] builtin(int code, int other) throws Exception {
        byte[] content =
                Files.readAllBytes(new File(TestBundles.SHIPPED, TestBundles.INT8).toPath());
        ByteBuffer data = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN);
        int root = data.getInt(0);
        int codes = field(data, root, 1);
        codes += data.getInt(codes);
        for (int i = 0; i < data.getInt(codes); i++) {
            int entry = codes + 4 + 4 * i;
            entry += data.getInt(entry);
            if (data.get(field(data, entry, 0)) == code) {
                data.put(field(data, entry, 0), (byte) other);
                if (data.getShort(entry - data.getInt(entry)) > 10) {
                    data.putInt(field(data, entry, 3), other);
                }
                return content;
            }
        }
        throw new IllegalArgumentException("no operator " + code);
    }

    private static int field(ByteBuffer data, int table, int index) {
        return table + data.getShort(table - data.getInt(table) + 4 + 2 * index);
    }
}
