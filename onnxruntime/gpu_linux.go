//go:build cgo && !noort

package onnxruntime

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// The few parts of Vulkan 1.0 needed to list devices. Handles are pointers; structures begin with their
// type and an extension pointer.
typedef struct {
	uint32_t type;
	const void *next;
	uint32_t flags;
	const void *application;
	uint32_t layers;
	const char *const *layer_names;
	uint32_t extensions;
	const char *const *extension_names;
} instance_info;

typedef int32_t (*create_instance)(const instance_info *, const void *, void **);
typedef void (*destroy_instance)(void *, const void *);
typedef int32_t (*list_devices)(void *, uint32_t *, void **);
typedef void (*device_properties)(void *, void *);

enum { MAX_DEVICES = 8, NAME = 256, KIND_AT = 16, NAME_AT = 20, PROPERTIES = 4096 };

static void *vulkan_open(void) { return dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL); }

// vulkan_devices fills kinds and names, and returns the number of devices.
static int vulkan_devices(void *lib, uint32_t *kinds, char *names) {
	create_instance create = (create_instance)dlsym(lib, "vkCreateInstance");
	destroy_instance destroy = (destroy_instance)dlsym(lib, "vkDestroyInstance");
	list_devices list = (list_devices)dlsym(lib, "vkEnumeratePhysicalDevices");
	device_properties properties = (device_properties)dlsym(lib, "vkGetPhysicalDeviceProperties");
	instance_info info = {.type = 1};
	void *instance = NULL, *devices[MAX_DEVICES];
	uint32_t n = MAX_DEVICES;
	if (!create || !destroy || !list || !properties) return 0;
	if (create(&info, NULL, &instance) != 0) return 0;
	if (list(instance, &n, devices) < 0) n = 0;
	for (uint32_t i = 0; i < n; i++) {
		// VkPhysicalDeviceProperties has 824 bytes; the buffer leaves room.
		uint64_t p[PROPERTIES / 8] = {0};
		properties(devices[i], p);
		memcpy(&kinds[i], (char *)p + KIND_AT, sizeof kinds[i]);
		memcpy(names + i * NAME, (char *)p + NAME_AT, NAME - 1);
	}
	destroy(instance, NULL);
	return (int)n;
}
*/
import "C"

import (
	"errors"
	"sync"
	"unsafe"
)

// vulkanCPU is VK_PHYSICAL_DEVICE_TYPE_CPU.
const vulkanCPU = 4

var vulkanLibrary = sync.OnceValue(func() unsafe.Pointer { return C.vulkan_open() })

// gpuLoader reports whether Vulkan's loader is installed, without starting a driver.
func gpuLoader() error {
	if vulkanLibrary() == nil {
		return errors.New("libvulkan.so.1 is not installed")
	}
	return nil
}

// gpuDevices lists Vulkan's devices, which starts their drivers.
var gpuDevices = sync.OnceValue(func() []gpuDevice {
	lib := vulkanLibrary()
	if lib == nil {
		return nil
	}
	var kinds [C.MAX_DEVICES]C.uint32_t
	var names [C.MAX_DEVICES][C.NAME]C.char
	n := int(C.vulkan_devices(lib, &kinds[0], &names[0][0]))
	devices := make([]gpuDevice, n)
	for i := range devices {
		devices[i] = gpuDevice{name: C.GoString(&names[i][0]), software: kinds[i] == vulkanCPU}
	}
	return devices
})
